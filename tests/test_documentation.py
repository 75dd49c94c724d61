"""Whatever README and docs show: the code runs, the commands run, links lead somewhere."""

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

from cdrl_fast.cli import main
from tests.model.released_networks import Case, checkpoint, layout

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Appended to a command, whose own options give way: the same work in small.
SHORT = {
    "train": "--iterations 1 --batch-size 4 --steps 1 --energy-width 8 --energy-blocks 1 "
    "--initializer-width 8 --levels 2 --metrics-every 0 --preview-every 0",
    "sample": "-n 10 --steps 1",
    "inpaint": "--samples 1 --n 2 --passes 1 --steps 1",
    "evaluate": "--samples 30",
    "tune": "--samples 20 --budget 12 --minutes 0.01",
    "bench": "--rounds 1 --batch 2 --steps 1",
}
# Named in the docs, and run by CI or by a test of their own.
ELSEWHERE = {
    "cdrl-fast app": "tests/app/test_page.py",
    "cdrl-fast demo": "tests/cli/test_demo.py",
    "pytest benchmarks/": ".ci/run",
    "pytest benchmarks/test_langevin.py": ".ci/run",
    "pytest benchmarks/test_training.py": ".ci/run",
    "python -m": ".ci/run",
    "source .venv/bin/activate": ".ci/run",
}
# By hand: they need a GPU, a quiet machine, or hours.
BY_HAND = {"make gpu", "make gpu-tune", "make bench", "make slow", "make demo"}


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
    return [pytest.param(line, id=": ".join(place)) for place, line in lines.items()]


def of_page(page):
    return str(page.relative_to(ROOT))


# The README's code is `tests/cli/test_demo.py`'s.
@pytest.mark.parametrize("page", [p for p in PAGES[1:] if blocks(p, "python")], ids=of_page)
def test_code_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the commands find where they run: images, a mask, runs, a released checkpoint."""
    place = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    photos = [f"photos/{'ab'[i % 2]}/{i}" for i in range(10)]
    for name in (*photos, "others/1", "others/2"):
        path = place / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    Image.fromarray(np.repeat([0, 255], 4)[:, None].repeat(8, 1).astype(np.uint8)).save(
        place / "mask.png"
    )
    train = ["train", *shlex.split(SHORT["train"])]
    for name in ("digits", "drl", "cifar10"):
        assert main([*train, "--out", str(place / "runs" / name)]) == 0
    photos = ["--data", f"folder:{place / 'photos'}", "--image-size", "32"]
    assert main([*train, *photos, "--out", str(place / "runs" / "photos")]) == 0
    layouts = layout(8, (1, 2, 2), 1), layout(32, (1, 1, 1), 1, attention=(16, 8))
    content, _ = checkpoint(Case(*layouts))
    torch.save(content, place / "checkpoint.pth.tar")
    return place


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


def run(words, place, monkeypatch):
    """One cdrl-fast command in small; a run that begins has a folder of its own."""
    monkeypatch.chdir(place)
    command = words[0]
    data = option(words, "--data")
    if data and data.startswith(("cifar10:", "idx:")):
        words = ["digits" if w in (data, "fashion-mnist") else w for w in words]
    if command == "train" and "--resume" not in words:
        words[words.index("--out") + 1] = tempfile.mkdtemp(dir=place)
    if command == "evaluate" and "--steps" not in words:
        words = [*words, "--steps", "1"]
    if "--held-out" in words:
        words[words.index("--held-out") + 1] = "0.2"  # of one classifier for all
    if "--guidance" in words:
        words[words.index("--guidance") + 1] = words[words.index("--guidance") + 1][-3:]
    if "--seeds" in words:
        words = [*words, "--seeds", "1"]
    assert main([*words, *shlex.split(SHORT.get(command, ""))]) == 0


@pytest.mark.parametrize("line", commands())
def test_commands_run(line, request, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["cdrl-fast", *words[words.index("cdrl_fast.cli") + 1 :]]
    kind, what = words[0], " ".join(words[:2])
    if what in ELSEWHERE:
        assert (ROOT / ELSEWHERE[what]).is_file()
    elif kind == "cdrl-fast":
        run(words[1:], request.getfixturevalue("workplace"), monkeypatch)
    elif kind == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert what in BY_HAND or f"make {words[1]}" in (ROOT / ".ci/run").read_text()
    elif kind == "python":
        script = ROOT / words[1]
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
    elif what == "pip install":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(\w+)\]", line):
            assert extra in known["optional-dependencies"]
    else:
        pytest.fail(f"nobody runs this command: {line}")


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"!?\[[^]]*\]\(([^)]+)\)", text)
    return [link for link in found if not link.startswith(("http://", "https://"))]


@pytest.mark.parametrize("page", [p for p in PAGES if links(p)], ids=of_page)
def test_links_lead_somewhere(page):
    gone = [link for link in links(page) if not (page.parent / link.split("#")[0]).exists()]
    assert not gone
