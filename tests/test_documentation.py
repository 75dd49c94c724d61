"""Tests of README and docs: the code runs, the commands run, the links exist."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast.cli.main import main
from tests.model.released_networks import Case, checkpoint, layout

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Options appended to a command, which override its own: the same work at a small size.
SHORT = {
    "train": "--iterations 1 --batch-size 4 --steps 1 --energy-width 8 --energy-blocks 1 "
    "--initializer-width 8 --levels 2 --metrics-every 0 --preview-every 0",
    "sample": "-n 10 --steps 1",
    "inpaint": "--samples 1 --n 2 --passes 1 --steps 1",
    "evaluate": "--samples 30",
    "tune": "--samples 20 --budget 12 --minutes 0.01",
    "bench": "--rounds 1 --batch 2 --steps 1",
}
# Commands that CI or another test runs.
RUN_ELSEWHERE = {
    "cdrl-fast app": "tests/app/test_page.py",
    "cdrl-fast demo": "tests/cli/test_demo.py",
    "pytest benchmarks/": ".ci/run",
    "pytest benchmarks/test_langevin.py": ".ci/run",
    "pytest benchmarks/test_training.py": ".ci/run",
    "python -m": ".ci/run",
    "source .venv/bin/activate": ".ci/run",
}
# Commands that nothing runs automatically: they need a GPU, an idle machine, or hours.
MANUAL = {"make gpu", "make gpu-tune", "make bench", "make slow", "make demo"}


def blocks(page, language):
    fenced = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in fenced if block.strip()]


def commands():
    lines = {
        (page.stem, line.split("#")[0].strip()): line.strip()
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line.strip()
    }
    return [pytest.param(line, id=": ".join(key)) for key, line in lines.items()]


def page_id(page):
    return str(page.relative_to(ROOT))


# tests/cli/test_demo.py runs the README's code.
@pytest.mark.parametrize("page", [p for p in PAGES[1:] if blocks(p, "python")], ids=page_id)
def test_code_runs_unchanged(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what the commands need: images, a mask, runs, a released checkpoint."""
    path = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    photos = [f"photos/{'ab'[i % 2]}/{i}" for i in range(10)]
    for name in (*photos, "others/1", "others/2"):
        file = path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    Image.fromarray(np.repeat([0, 255], 4)[:, None].repeat(8, 1).astype(np.uint8)).save(
        path / "mask.png"
    )
    train = ["train", *shlex.split(SHORT["train"])]
    for name in ("digits", "drl", "cifar10"):
        assert main([*train, "--out", str(path / "runs" / name)]) == 0
    photos = ["--data", f"folder:{path / 'photos'}", "--image-size", "32"]
    assert main([*train, *photos, "--out", str(path / "runs" / "photos")]) == 0
    layouts = layout(8, (1, 2, 2), 1), layout(32, (1, 1, 1), 1, attention=(16, 8))
    content, _ = checkpoint(Case(*layouts))
    torch.save(content, path / "checkpoint.pth.tar")
    return path


def option(arguments, name):
    return arguments[arguments.index(name) + 1] if name in arguments else None


def run(arguments, folder, monkeypatch):
    """Run one cdrl-fast command at a small size; a new training run gets a new folder."""
    monkeypatch.chdir(folder)
    command = arguments[0]
    data = option(arguments, "--data")
    if data and data.startswith(("cifar10:", "idx:")):
        arguments = ["digits" if a in (data, "fashion-mnist") else a for a in arguments]
    if command == "train" and "--resume" not in arguments:
        arguments[arguments.index("--out") + 1] = tempfile.mkdtemp(dir=folder)
    if command == "evaluate" and "--steps" not in arguments:
        arguments = [*arguments, "--steps", "1"]
    if "--held-out" in arguments:  # one share for all, so that the cached classifier fits
        arguments[arguments.index("--held-out") + 1] = "0.2"
    if "--guidance" in arguments:
        weights = arguments.index("--guidance") + 1
        arguments[weights] = arguments[weights][-3:]
    if "--seeds" in arguments:
        arguments = [*arguments, "--seeds", "1"]
    assert main([*arguments, *shlex.split(SHORT.get(command, ""))]) == 0


@pytest.mark.parametrize("line", commands())
def test_commands_run(line, request, monkeypatch):
    arguments = shlex.split(line, comments=True)
    if arguments[0] == "torchrun":
        arguments = ["cdrl-fast", *arguments[arguments.index("cdrl_fast") + 1 :]]
    program, command = arguments[0], " ".join(arguments[:2])
    if command in RUN_ELSEWHERE:
        assert (ROOT / RUN_ELSEWHERE[command]).is_file()
    elif program == "cdrl-fast":
        run(arguments[1:], request.getfixturevalue("folder"), monkeypatch)
    elif program == "make":
        assert re.search(rf"^{arguments[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert command in MANUAL or command in (ROOT / ".ci/run").read_text()
    elif program == "python":
        script = ROOT / arguments[1]
        if script.parent.name != "examples":
            python = [sys.executable, script, "--help"]
            subprocess.run(python, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
            return
        assert script.is_file()
        assert any(
            script.stem in t.read_text()
            for t in (ROOT / "tests").rglob("test_*.py")
            if t != Path(__file__)
        )
    elif command == "pip install":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(\w+)\]", line):
            assert extra in known["optional-dependencies"]
    else:
        pytest.fail(f"no test runs this command: {line}")


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"!?\[[^]]*\]\(([^)]+)\)", text)
    return [link for link in targets if not link.startswith(("http://", "https://"))]


@pytest.mark.parametrize("page", [p for p in PAGES if links(p)], ids=page_id)
def test_links_exist(page):
    broken = [link for link in links(page) if not (page.parent / link.split("#")[0]).exists()]
    assert not broken
