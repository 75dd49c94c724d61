"""Examples that no other test runs, in short: what they write, and whether it can be true."""

import json
import sys

import attributes
import composition
import digits
import inpainting
import levels
import numpy as np
import pytest
from PIL import Image

from cdrl_fast.data import load_data


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


def test_digits(tmp_path, monkeypatch):
    words = ["digits.py", "--out", str(tmp_path / "digits.png"), "--steps", "1", "--guidance", "0"]
    monkeypatch.setattr(sys, "argv", words)
    digits.main()
    assert Image.open(tmp_path / "digits.png").width > (10 + 7) * 48


@pytest.mark.slow
@pytest.mark.parametrize("attribute", ["stroke", "flip"])
def test_attributes(run, capsys, attribute):
    options = ["--iterations", "1", "--samples", "1", "--weights", "0", "--correctors", "0"]
    out = run(attributes, "--attribute", attribute, *options)
    rows = json.loads((out / f"attributes-{attribute}.json").read_text())["rows"]
    assert min(rows["held-out images"]) > 0.9
    if attribute == "stroke":
        assert rows["class alone"][0] > 0.7  # of 20
    assert set(rows) == {"held-out images", "class alone", f"{attribute} alone", "both, w = 0"}
    assert "| both, w = 0 |" in capsys.readouterr().out
    assert Image.open(out / "attributes.png").width > 2 * 8


def test_what_is_mirrored():
    """Images and their mirror images, each with its digit and its way; of some digits alone."""
    train, held = load_data("digits").split(0.2)
    flip = attributes.Attribute.flip(train, held)
    n = len(train)
    both = flip.of_class.values
    np.testing.assert_array_equal(both[n:], both[:n, :, :, ::-1])
    np.testing.assert_array_equal(flip.of_class.labels[n:], train.labels)
    assert flip.training.labels.tolist() == [1] * n + [2] * n
    telling = attributes.only(held, attributes.TELLING)
    assert {held.classes[label - 1] for label in telling.labels} == set(attributes.TELLING)
    assert len(flip.held_out) == 2 * len(telling) < 2 * len(held)


def test_inpainting(run):
    options = ["--images", "3", "--seeds", "1", "--most-cost", "1", "--candidates", "2"]
    out = run(inpainting, *options)
    rows = json.loads((out / "figures.json").read_text())["rows"]
    assert [r["completion"] for r in rows].count("candidates 2, passes 2, steps 5") == 2
    assert Image.open(out / "inpainting.png").width > 100


def test_composition_of_trained_models(run, capsys):
    options = ["--train", "1", "--samples", "50", "--steps", "1", "--correctors", "0"]
    out = run(composition, *options)
    made = json.loads((out / "composition-trained.json").read_text())
    assert made["iterations"] == 1
    assert [row["combination"] for row in made["rows"]] == list(composition.CASES)
    assert all(0 < row["0 correctors"] <= 1 for row in made["rows"])
    assert "| mixture, 3 : 2 |" in capsys.readouterr().out
    assert Image.open(out / "composition.png").width > 400
