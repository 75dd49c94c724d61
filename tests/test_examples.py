"""Examples that no other test runs, in short: what they write, and whether it can be true."""

import json
import sys

import attributes
import inpainting
import levels
import pytest
from PIL import Image


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(example, *options):
        words = [f"{example.__name__}.py", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", words)
        example.main()
        return tmp_path / "out"

    return run


def test_levels(run):
    out = run(levels)
    assert Image.open(out / "noising.png").width > 7 * 48
    assert Image.open(out / "proposals.png").width > 13 * 48


@pytest.mark.slow
def test_attributes(run, capsys):
    options = ["--iterations", "1", "--samples", "1", "--weights", "0", "--correctors", "0"]
    out = run(attributes, *options)
    rows = json.loads((out / "attributes-digits.json").read_text())["rows"]
    assert rows["held-out images"][0] > 0.97
    assert rows["class alone"][0] > 0.7  # of 20
    assert set(rows) == {"held-out images", "class alone", "stroke alone", "both, w = 0"}
    assert "| both, w = 0 |" in capsys.readouterr().out
    assert Image.open(out / "attributes.png").width > 2 * 8


def test_inpainting(run):
    out = run(inpainting, "--images", "3", "--seeds", "1", "--most-passes", "1")
    rows = json.loads((out / "figures.json").read_text())["rows"]
    assert rows
    assert Image.open(out / "inpainting.png").width > 100
