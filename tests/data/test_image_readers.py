"""Tests of image folders and the hub: exact pixels, classes, and a message for every fault."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdrl_fast.data import load_data
from tests.data.data_cases import COLOUR, GREY, RNG, fails

# Image folders


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_folder_classes_are_sorted_and_pixels_exact(tmp_path):
    save(tmp_path / "dog" / "1.PNG", COLOUR[0, :, :5].transpose(1, 2, 0))
    save(tmp_path / "cat" / "b.bmp", COLOUR[1, :, :5].transpose(1, 2, 0))
    save(tmp_path / "cat" / "a.webp", COLOUR[2, :, :5].transpose(1, 2, 0), lossless=True)
    save(tmp_path / "cat" / "c.png", GREY[0, :5])
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = load_data(f"folder:{tmp_path}")
    grey = np.repeat(GREY[:1, :5], 3, axis=0)
    assert np.array_equal(data.values, [*COLOUR[[2, 1], :, :5], grey, COLOUR[0, :, :5]])
    assert (data.labels.tolist(), data.classes) == ([1, 1, 1, 2], ("cat", "dog"))


def test_folder_of_greyscale_stays_greyscale(tmp_path):
    save(tmp_path / "a.png", GREY[0, :5])
    save(tmp_path / "b.png", GREY[1, :5] > 99)
    save(tmp_path / "c.png", GREY[2, :5].astype(np.uint16) * 256 + 77)
    save(tmp_path / "d.gif", GREY[3, :5], save_all=True, append_images=[Image.new("L", (5, 5))])
    data = load_data(f"folder:{tmp_path}")
    expected = [GREY[0, :5], (GREY[1, :5] > 99) * 255, GREY[2, :5], GREY[3, :5]]
    assert np.array_equal(data.values[:, 0], expected)
    assert data.labels is None


def test_folder_resizes_antialiased_and_keeps_the_centre(tmp_path):
    stripes = np.zeros((32, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    stripes[:, :16] = stripes[:, 48:] = 7  # outside the central square
    save(tmp_path / "wide.png", stripes)
    save(tmp_path / "tall.jpg", np.full((20, 10), 90, dtype=np.uint8), quality=95)
    tall, wide = load_data(f"folder:{tmp_path}", image_size=4).values[:, 0]
    assert wide.shape == (4, 4)
    # Picking every eighth pixel would give 0 or 255; the average of the stripes is 127.5.
    assert np.abs(wide.astype(int) - 127).max() < 20
    assert np.abs(tall.astype(int) - 90).max() <= 1


def test_folder_honours_the_camera_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    save(tmp_path / "a.png", GREY[0, :5], exif=exif)
    assert np.array_equal(load_data(f"folder:{tmp_path}").values[0, 0], GREY[0, 4::-1, ::-1])


def test_folder_faults(tmp_path):
    fails(f"folder:{tmp_path / 'nowhere'}", tmp_path / "nowhere", "no such folder")
    fails(f"folder:{tmp_path}", tmp_path, "holds no images")
    (tmp_path / "cat").mkdir()
    fails(f"folder:{tmp_path}", tmp_path / "cat", "holds no images")
    save(tmp_path / "cat" / "a.png", GREY[0])
    fails(f"folder:{tmp_path}", tmp_path / "cat" / "a.png", "5x6 pixels", "need image_size")
    save(tmp_path / "loose.png", GREY[0])
    fails(f"folder:{tmp_path}", tmp_path, "contains images (such as loose.png) next to folders")
    (tmp_path / "loose.png").unlink()
    (tmp_path / "cat" / "inner").mkdir()
    fails(f"folder:{tmp_path}", tmp_path / "cat", "must contain only images, but has folders")


def test_folder_of_different_sizes_needs_image_size(tmp_path):
    save(tmp_path / "a.png", GREY[0, :5])
    save(tmp_path / "b.png", GREY[0, :4, :4])
    fails(f"folder:{tmp_path}", tmp_path / "b.png", "is 4x4 pixels, expected 5x5", "image_size")
    assert load_data(f"folder:{tmp_path}", image_size=4).values.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("content", [b"", b"not a picture", "truncated"])
def test_broken_image_is_named(tmp_path, content):
    save(tmp_path / "a.png", RNG.integers(0, 256, (40, 40), dtype=np.uint8))
    complete = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(complete[:700] if content == "truncated" else content)
    fails(f"folder:{tmp_path}", tmp_path / "b.png", "cannot be read as an image")


# The hub


class Feature:
    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = list(names)


class ImageFeature(Feature):
    pass


class ClassFeature(Feature):
    pass


class Table:
    """A stand-in for ``datasets.Dataset``, with the methods that the reader uses."""

    def __init__(self, columns: dict[str, tuple[Feature, list[Any]]]) -> None:
        self.columns = columns
        self.features = {name: feature for name, (feature, _) in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))[1])

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns[key][1]
        return {name: cells[key] for name, (_, cells) in self.columns.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table({name: self.columns[name] for name in names})


@pytest.fixture
def hub(monkeypatch):
    """Install a stand-in for the ``datasets`` package; its ``tables`` are by name and split."""
    module = ModuleType("datasets")
    tables: dict[tuple[str, str], Table] = {}
    module.Image, module.ClassLabel, module.tables = ImageFeature, ClassFeature, tables
    module.load_dataset = lambda name, *, split: tables[name, split]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def table(labels: list[int | None], **extra: tuple[Feature, list[Any]]) -> Table:
    pictures = [Image.fromarray(array[:5]) for array in GREY[: len(labels)]]
    pixels, kinds = (ImageFeature(), pictures), (ClassFeature(("cat", "dog")), labels)
    return Table({"text": (Feature(), ["?"] * len(labels)), "img": pixels, "kind": kinds} | extra)


def test_hub_finds_the_columns_by_type(hub):
    hub.tables["someone/pets", "valid"] = table([1, 0, 1])
    data = load_data("hub:someone/pets", split="valid")
    assert np.array_equal(data.values[:, 0], GREY[:3, :5])
    assert (data.labels.tolist(), data.classes) == ([2, 1, 2], ("cat", "dog"))
    assert load_data("hub:someone/pets", split="valid", image_size=3).sample_shape == (1, 3, 3)


@pytest.mark.parametrize("hidden", [-1, None])
def test_hub_hidden_labels_are_none(hub, hidden):
    hub.tables["pets", "train"] = table([hidden, hidden])
    data = load_data("hub:pets")
    assert (len(data), data.labels, data.classes) == (2, None, ())


def test_hub_faults(hub):
    fails("hub:pets", "hub:pets: cannot load split 'test'", "check the name", split="test")
    hub.tables["pets", "train"] = table([])
    fails("hub:pets", "hub:pets: split 'train' is empty")
    hub.tables["pets", "train"] = table([0, None, 1])
    fails("hub:pets", "hub:pets column 'kind'", "from 0 to 1, got -1 to 1")
    hub.tables["pets", "train"] = table([0], img=(Feature(), [1]))
    fails("hub:pets", "hub:pets: no image column among ['text', 'img', 'kind']")
    good, fractions = Image.new("L", (5, 5)), Image.new("F", (5, 5))
    hub.tables["pets", "train"] = table([0, 1], img=(ImageFeature(), [good, None]))
    fails("hub:pets", "hub:pets row 1: cannot be read as an image")
    hub.tables["pets", "train"] = table([0], img=(ImageFeature(), [fractions]))
    fails("hub:pets", "hub:pets row 0", "its pixels are floating point")
