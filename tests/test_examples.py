"""Short runs of the examples that no other test runs, and checks of their output."""

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
        arguments = [f"{example.__name__}.py", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        example.main()
        return tmp_path / "out"

    return run


def test_levels(run):
    out = run(levels)
    assert Image.open(out / "noising.png").width > 7 * 48
    assert Image.open(out / "proposals.png").width > 13 * 48


def test_digits(tmp_path, monkeypatch):
    options = ["--out", str(tmp_path / "digits.png"), "--steps", "1", "--guidance", "0"]
    monkeypatch.setattr(sys, "argv", ["digits.py", *options])
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


def test_mirrored_images():
    """The flip attribute has images and mirror images with their digits and orientations."""
    train, held_out = load_data("digits").split(0.2)
    flip = attributes.Attribute.flip(train, held_out)
    n = len(train)
    both = flip.of_class.values
    np.testing.assert_array_equal(both[n:], both[:n, :, :, ::-1])
    np.testing.assert_array_equal(flip.of_class.labels[n:], train.labels)
    assert flip.training.labels.tolist() == [1] * n + [2] * n
    asymmetric = attributes.only(held_out, attributes.ASYMMETRIC)
    digits_left = {held_out.classes[label - 1] for label in asymmetric.labels}
    assert digits_left == set(attributes.ASYMMETRIC)
    assert len(flip.held_out) == 2 * len(asymmetric) < 2 * len(held_out)


def test_inpainting(run):
    options = ["--images", "3", "--seeds", "1", "--most-cost", "1", "--candidates", "2"]
    out = run(inpainting, *options)
    rows = json.loads((out / "figures.json").read_text())["rows"]
    assert [r["completion"] for r in rows].count("candidates 2, passes 2, steps 5") == 2
    assert Image.open(out / "inpainting.png").width > 100


def test_composition_of_trained_models(run, capsys):
    options = ["--train", "1", "--samples", "50", "--steps", "1", "--correctors", "0"]
    out = run(composition, *options)
    figures = json.loads((out / "composition-trained.json").read_text())
    assert figures["iterations"] == 1
    assert [row["combination"] for row in figures["rows"]] == list(composition.CASES)
    assert all(0 < row["exact samples"] < 1 for row in figures["rows"])
    assert all(0 < row["0 correctors"] <= 1 for row in figures["rows"])
    assert "| mixture, 3 : 2 |" in capsys.readouterr().out
    assert Image.open(out / "composition.png").width > 400
