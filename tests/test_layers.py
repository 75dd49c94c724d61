"""The floors of the library: a module imports only from floors below its own, or as said here."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cdrl_fast"

# Floor of each room; a room is a module or a folder directly in the package.
FLOORS = {
    "errors": 1, "optional": 1, "schedule": 1, "networks": 1, "checkpoint": 1, "train_config": 1,
    "_native": 1, "precision": 1, "card": 1, "field_types": 1, "progress": 1, "saved": 1,
    "processes": 1, "watch": 2,
    "data": 2, "ops": 2, "model": 2,
    "engine": 3, "reference": 3, "released": 3, "metrics": 3, "batches": 3, "levels": 3,
    "environment": 3, "energies": 3, "run_folder": 3, "training_state": 3, "stability": 1,
    "masks": 3, "floor": 3, "updates": 3,
    "trace": 4, "conditions": 4, "chain": 4, "scores": 4, "inpainting": 4, "sampler": 4,
    "candidates": 4, "draws": 3,
    "report": 4, "recipe": 4, "dynamics": 4,
    "iteration": 4, "iteration_graph": 4,
    "evaluation": 5, "trainer": 5, "bench": 5, "shards": 5,
    "sweep": 6, "tuning": 6, "playground": 6, "pages": 6, "commands": 7, "app": 8, "cli": 9,
}  # fmt: skip
# Imports inside one floor, where a room may also be closed to what lies below.
SAME_FLOOR = {
    ("checkpoint", "errors"),
    ("precision", "errors"),
    ("train_config", "field_types"),
    ("train_config", "precision"),
    ("saved", "checkpoint"),
    ("saved", "errors"),
    ("precision", "_native"),
    ("sampler", "trace"),
    ("sampler", "conditions"),
    ("sampler", "chain"),
    ("sampler", "inpainting"),
    ("chain", "inpainting"),
    ("inpainting", "scores"),
    ("inpainting", "candidates"),
    ("inpainting", "conditions"),
    ("sampler", "scores"),
    ("scores", "conditions"),
    ("chain", "trace"),
    ("iteration_graph", "iteration"),
}
CLOSED = {
    "networks": set(), "schedule": set(), "checkpoint": {"errors"},
    "train_config": {"field_types", "precision"},
    "ops": {"errors", "_native"},
    "precision": {"errors", "_native"},
    "engine": {"ops", "networks", "precision", "schedule", "errors"},
    "reference": {"networks", "schedule", "ops", "model"},
    "dynamics": {"engine", "ops", "errors"},
    "trace": {"engine", "schedule"},
    "energies": {"model"},
    "conditions": {"energies", "engine", "model", "ops"},
    "scores": {"conditions", "energies", "model", "engine", "ops"},
    "candidates": {"engine", "ops", "schedule"},
    "inpainting": {
        "candidates", "conditions", "energies", "scores", "engine", "model", "ops", "schedule",
    },
    "chain": {"trace", "inpainting", "model", "schedule", "engine", "ops", "errors"},
    "sampler": {
        "trace", "chain", "scores", "conditions", "energies", "inpainting", "progress", "model",
        "schedule", "engine", "ops", "precision", "errors",
    },
}  # fmt: skip


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Full names of the cdrl_fast modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{a.name}" for a in node.names)


def internal(path):
    return [name.split(".")[1:] for name in imports(path) if name.startswith("cdrl_fast.")]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    assert here in FLOORS, f"{here}: give the new room a floor"
    for parts in internal(path):
        there = parts[0]
        if there == here or there == "__version__":
            continue
        assert there in FLOORS, f"{path.name} imports {there}, which has no floor"
        lower = FLOORS[there] < FLOORS[here] or (here, there) in SAME_FLOOR
        assert lower, f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"
        if here in CLOSED:
            assert there in CLOSED[here], f"{here} may not import {there}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=str)
def test_operations_do_not_know_each_other(path):
    """Operations share the files directly in ops/ and the meaning of noise and Langevin step."""
    parts = path.relative_to(PACKAGE / "ops").parts
    if len(parts) == 1:
        return
    shared = {p.stem for p in (PACKAGE / "ops").glob("*.py")}
    for name in internal(path):
        if name[:1] == ["ops"] and name[1] not in {parts[0]} | shared:
            meanings = (["normal", "reference"], ["langevin_step", "reference"])
            assert name[1:3] in meanings, f"{path} imports ops.{name[1]}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_tests_or_benchmarks(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"tests", "benchmarks", "scripts"}


def test_the_reference_uses_reference_rooms_of_operations():
    for name in internal(PACKAGE / "reference.py"):
        if name[0] == "ops":
            assert name[1:2] == ["philox"] or name[1:3] == ["normal", "reference"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400
