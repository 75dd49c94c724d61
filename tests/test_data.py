"""Data sets: exact pixels from every format, and a message that names the file for every fault."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast.data import Dataset, checkerboard, in_checkerboard, load_data
from cdrl_fast.errors import DataError

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2], dtype=np.uint8)


def fails(spec: str, *fragments: object, **options: Any) -> None:
    """``load_data`` refuses, and its message holds every fragment."""
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    for fragment in fragments:
        assert str(fragment) in str(caught.value)


def images(n: int = 10, **changes: Any) -> Dataset:
    values = np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)
    labels = np.arange(n, dtype=np.int64) % 2 + 1
    settings = {"name": "mine", "values": values, "labels": labels, "classes": ("a", "b")}
    return Dataset(**(settings | changes))


# Dataset


def test_batch_scales_images_exactly_at_both_ends():
    values = np.array([[0, 255], [51, 204]], dtype=np.uint8)[None, None]
    samples, labels = Dataset("x", values, None, ()).batch([0, 0])
    assert samples.dtype == torch.float32
    assert samples.shape == (2, 1, 2, 2)
    assert samples[0, 0, 0].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(samples[1, 0, 1], torch.tensor([-0.6, 0.6]))
    assert labels is None


@pytest.mark.parametrize("maximum", [1, 7, 16, 41, 254, 255])
def test_batch_scale_is_exact_for_any_maximum(maximum):
    values = np.array([0, maximum], dtype=np.uint8).reshape(2, 1, 1, 1)
    samples, _ = Dataset("x", values, None, (), maximum).batch([0, 1])
    assert samples.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_batch_takes_any_integers_in_order(make):
    samples, labels = images().batch(make([3, -1, 3]))
    expected = np.array([12, 36, 12], dtype=np.float32) * 2 / 255 - 1
    np.testing.assert_allclose(samples[:, 0, 0, 0], expected, rtol=1e-6)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 2, 2]


def test_batch_leaves_points_as_they_are_and_is_a_copy():
    data = Dataset("p", np.array([[3.5, -7], [1, 2]], dtype=np.float32), None, (), None)
    samples, _ = data.batch([0])
    samples.zero_()
    assert data.values[0].tolist() == [3.5, -7]
    assert not data.is_images
    assert data.sample_shape == (2,)


def test_bad_indices_are_refused():
    with pytest.raises(TypeError, match="flat sequence of integers"):
        images().batch(np.ones(10, dtype=bool))
    with pytest.raises(TypeError, match="flat sequence of integers"):
        images().subset([0.0, 1.0])
    with pytest.raises(IndexError):
        images().batch([10])
    with pytest.raises(DataError, match="mine: empty"):
        images().subset([])


def test_subset_keeps_labels_and_classes():
    part = images().subset([5, 2])
    assert part.values[:, 0, 0, 0].tolist() == [20, 8]
    assert part.labels.tolist() == [2, 1]
    assert (part.classes, part.name, part.is_images) == (("a", "b"), "mine", True)


def test_split_is_disjoint_complete_and_seeded():
    data = images(50)
    kept, held_out = data.split(0.2, seed=3)
    firsts = [set(side.values[:, 0, 0, 0].tolist()) for side in (kept, held_out)]
    assert (len(kept), len(held_out)) == (40, 10)
    assert not firsts[0] & firsts[1]
    assert firsts[0] | firsts[1] == set(data.values[:, 0, 0, 0].tolist())
    for side in (kept, held_out):
        assert np.all(np.diff(side.values[:, 0, 0, 0].astype(int)) > 0)  # the original order
        assert np.array_equal(side.labels, side.values[:, 0, 0, 0] // 4 % 2 + 1)
    assert np.array_equal(held_out.values, data.split(0.2, seed=3)[1].values)
    assert not np.array_equal(held_out.values, data.split(0.2, seed=4)[1].values)


def test_split_refuses_an_empty_side():
    for share in (0.01, 0.99):
        with pytest.raises(DataError, match=r"mine: held_out=.* of 10 samples"):
            images().split(share)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="held_out must be between 0 and 1"):
            images().split(share)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((0, 1, 2, 2), np.uint8)}, "empty"),
        ({"values": np.zeros((10, 1, 2, 2), np.float32)}, "expected images .* got float32"),
        ({"values": np.zeros((10, 2, 2), np.uint8)}, r"shape \(10, 2, 2\)"),
        ({"values": np.zeros((10, 3), np.float32)}, r"shape \(10, 3\)"),
        ({"values": np.zeros((10, 2), np.float32)}, "maximum=None, got 255"),
        ({"values": np.full((10, 2), np.nan, np.float32), "maximum": None}, "not finite"),
        ({"maximum": None}, "from 39, the largest pixel, to 255, got None"),
        ({"maximum": 16}, "from 39, the largest pixel, to 255, got 16"),
        ({"values": np.zeros((10, 1, 2, 2), np.uint8), "maximum": 0}, "got 0"),
        ({"maximum": 256}, "got 256"),
        ({"labels": np.ones(10, np.int32)}, "labels int64 .* got int32"),
        ({"labels": np.ones(9, np.int64)}, r"got int64 of shape \(9,\)"),
        ({"labels": np.zeros(10, np.int64)}, "labels from 1 to 2, .* got 0 to 0"),
        ({"labels": np.full(10, 3)}, "got 3 to 3"),
        ({"labels": None}, "2 classes but no labels"),
    ],
)
def test_dataset_is_validated(changes, message):
    with pytest.raises(DataError, match=f"mine: .*{message}"):
        images(**changes)


# Sources without files


def test_digits():
    data = load_data("digits")
    assert (data.values.shape, data.maximum, data.name) == ((1797, 1, 8, 8), 16, "digits")
    assert data.classes == tuple("0123456789")
    assert data.labels[:4].tolist() == [1, 2, 3, 4]
    assert data.values[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    samples, _ = data.batch(range(1797))
    assert (samples.min(), samples.max()) == (-1, 1)


def test_resized_digits_use_the_finer_scale():
    small, large = load_data("digits"), load_data("digits", image_size=16)
    assert (large.sample_shape, large.maximum) == ((1, 16, 16), 255)
    means = [data.batch(range(200))[0].mean((1, 2, 3)) for data in (small, large)]
    torch.testing.assert_close(means[0], means[1], atol=0.06, rtol=0)
    assert np.array_equal(load_data("digits", image_size=8).values, small.values)


def test_checkerboard_fills_its_squares_evenly():
    points = load_data("checkerboard")
    square = in_checkerboard(points.values)
    assert (len(points), points.labels, points.maximum) == (50_000, None, None)
    assert square.min() == 0
    np.testing.assert_allclose(np.bincount(square) / 50_000, np.full(8, 1 / 8), atol=0.008)
    inner = points.values % 4
    np.testing.assert_allclose(inner.mean(0), 2, atol=0.03)
    np.testing.assert_allclose(inner.var(0), 16 / 12, atol=0.03)
    assert np.array_equal(points.values, checkerboard(50_000, seed=0))
    assert not np.array_equal(checkerboard(9), checkerboard(9, seed=1))


def test_in_checkerboard_geometry():
    # Row by row from the bottom; even rows use columns 0 and 2, odd rows columns 1 and 3.
    corners = [(-8, -8), (0, -8), (-4, -4), (4, -4), (-8, 0), (0, 0), (-4, 4), (4, 4)]
    assert in_checkerboard(np.array(corners)).tolist() == list(range(8))
    below = np.nextafter(np.array(corners) + 4.0, -np.inf)
    assert in_checkerboard(below).tolist() == list(range(8))
    outside = [(-4, -8), (8, 8), (7, 8), (-8.1, -8), (9, 9), (np.nan, 0), (np.inf, 1)]
    assert in_checkerboard(np.array(outside)).tolist() == [-1] * 7
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        in_checkerboard(np.zeros(2))


@pytest.mark.parametrize("spec", ["mnist", "digits:x", "folder", "folder:", "", "npzz:a"])
def test_unknown_spec_lists_the_known_ones(spec):
    fails(spec, repr(spec), "digits, checkerboard, idx:FOLDER, folder:PATH, npz:FILE", "hub:NAME")


def test_wrong_options_are_refused(tmp_path):
    fails("digits", "digits: has no split 'test', only train", split="test")
    fails(f"idx:{tmp_path}", "has no split 'valid', only train and test", split="valid")
    fails("checkerboard", "checkerboard: holds points", image_size=8)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        load_data("digits", image_size=0)


@pytest.mark.parametrize(
    ("module", "spec", "install"),
    [
        ("sklearn.datasets", "digits", "cdrl-fast[demo]"),
        ("PIL.Image", "folder:photos", "cdrl-fast[demo]"),
        ("datasets", "hub:x", "cdrl-fast[datasets]"),
    ],
)
def test_missing_package_names_the_extra(monkeypatch, module, spec, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        load_data(spec)
    assert f'pip install "{install}"' in str(caught.value)


# IDX


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_idx_round_trip(tmp_path, mark, zipped, split, prefix):
    for kind, array in (("images", GREY), ("labels", LABELS)):
        content = gzip.compress(idx(array)) if zipped else idx(array)
        name = f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
        (tmp_path / name).write_bytes(content)
    data = load_data(f"idx:{tmp_path}", split=split)
    assert np.array_equal(data.values, GREY[:, None])
    assert data.labels.tolist() == [3, 1, 2, 3]
    assert data.classes == ("0", "1", "2")


def test_idx_without_labels(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY))
    data = load_data(f"idx:{tmp_path}")
    assert (data.labels, data.classes) == (None, ())
    assert load_data(f"idx:{tmp_path}", image_size=3).sample_shape == (1, 3, 3)


CORRUPT = gzip.compress(idx(GREY))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("train-images-idx3-ubyte", None, "no such file"),
        ("train-images-idx3-ubyte", b"", "an empty file"),
        ("train-images-idx3-ubyte", idx(GREY)[:9], "truncated in its header"),
        ("train-images-idx3-ubyte", idx(GREY)[:-2], "truncated: the header says (4, 6, 5)"),
        ("train-images-idx3-ubyte", idx(GREY)[:-2], "2 bytes too few"),
        ("train-images-idx3-ubyte", idx(GREY) + b"abc", "3 bytes too many"),
        ("train-images-idx3-ubyte", idx(LABELS), "begins 00000803, got 00000801"),
        ("train-images-idx3-ubyte.gz", CORRUPT[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", CORRUPT[:-5] + b"12345", "cannot be read"),
        ("train-images-idx3-ubyte.gz", CORRUPT[:20] + b"\xff" * 40, "cannot be read"),
        ("train-images-idx3-ubyte.gz", idx(GREY), "cannot be read"),
        ("train-labels-idx1-ubyte", idx(LABELS[:3]), "expected 4 integer labels"),
        ("train-labels-idx1-ubyte", idx(LABELS)[:-1], "1 bytes too few"),
    ],
)
def test_idx_faults(tmp_path, name, content, fault):
    if "images" not in name:
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    fails(f"idx:{tmp_path}", tmp_path / name, fault)


def test_idx_with_no_images(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GREY[:0]))
    fails(f"idx:{tmp_path}", f"idx:{tmp_path}: empty")


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
    fails(f"folder:{tmp_path}", tmp_path, "mixed", "loose.png")
    (tmp_path / "loose.png").unlink()
    (tmp_path / "cat" / "inner").mkdir()
    fails(f"folder:{tmp_path}", tmp_path / "cat", "holds folders")


def test_folder_of_different_sizes_needs_image_size(tmp_path):
    save(tmp_path / "a.png", GREY[0, :5])
    save(tmp_path / "b.png", GREY[0, :4, :4])
    fails(f"folder:{tmp_path}", tmp_path / "b.png", "is 4x4 pixels, expected 5x5", "image_size")
    assert load_data(f"folder:{tmp_path}", image_size=4).values.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("content", [b"", b"not a picture", "truncated"])
def test_broken_image_is_named(tmp_path, content):
    save(tmp_path / "a.png", RNG.integers(0, 256, (40, 40), dtype=np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:700] if content == "truncated" else content)
    fails(f"folder:{tmp_path}", tmp_path / "b.png", "cannot be read as an image")


# NPZ


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
    ],
)
def test_npz_round_trip(tmp_path, stored, expected):
    np.savez_compressed(tmp_path / "a.npz", images=stored, labels=LABELS, classes=list("xyz"))
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert np.array_equal(data.values, expected)
    assert (data.labels.tolist(), data.classes) == ([3, 1, 2, 3], ("x", "y", "z"))


def test_npz_labels_and_classes_are_optional(tmp_path):
    np.savez(tmp_path / "a.npz", images=GREY)
    assert load_data(f"npz:{tmp_path / 'a.npz'}").labels is None
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS)
    assert load_data(f"npz:{tmp_path / 'a.npz'}").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"pixels": GREY}, "has no array 'images'"),
        ({"images": GREY.astype(float)}, "must be uint8 of 3 or 4 axes, got float64"),
        ({"images": GREY[0]}, "of (6, 5)"),
        ({"images": COLOUR[:, :, :, :3]}, "shape (4, 3, 6, 3), ambiguous"),
        ({"images": COLOUR[:, :2]}, "shape (4, 2, 6, 5), no channels"),
        ({"images": GREY.astype(object)}, "cannot read 'images'"),
        ({"images": GREY, "labels": LABELS.astype(object)}, "cannot read 'labels'"),
        ({"images": GREY, "labels": LABELS[:3]}, "expected 4 integer labels"),
        ({"images": GREY, "labels": LABELS / 2}, "integer labels, one per image, got float64"),
        ({"images": GREY, "labels": LABELS - 1.0 > 0}, "got bool"),
        ({"images": GREY, "labels": np.array([0, 0, -1, 0])}, "from 0 to 0, got -1 to 0"),
        ({"images": GREY, "labels": np.array([0, 0, 10**9, 0])}, "from 0 to 99999"),
        ({"images": GREY, "labels": LABELS, "classes": ["a", "b"]}, "from 0 to 1, got 0 to 2"),
        ({"images": GREY, "labels": LABELS, "classes": [1, 2, 3]}, "a list of strings, got int64"),
        ({"images": GREY, "classes": ["a"]}, "has 'classes' but no 'labels'"),
        ({"images": GREY[:0]}, "empty"),
    ],
)
def test_npz_faults(tmp_path, arrays, fault):
    np.savez(tmp_path / "a.npz", **arrays)
    fails(f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.npz", fault)


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    fails(f"npz:{path}", path, "no such file")
    np.savez(path, images=GREY)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    fails(f"npz:{path}", path, "not a complete .npz file")
    path.write_bytes(whole.replace(GREY.tobytes()[:8], b"damaged!"))
    fails(f"npz:{path}", path, "cannot read 'images'")
    np.save(tmp_path / "b.npy", GREY)
    fails(f"npz:{tmp_path / 'b.npy'}", "b.npy", "not a complete .npz file")


# CIFAR-10


def cifar(folder: Path, names: list[str]) -> np.ndarray:
    """Writes two records to each file; returns all of them."""
    folder.mkdir(exist_ok=True)
    records = RNG.integers(0, 256, (2 * len(names), 3073), dtype=np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    for name, pair in zip(names, records.reshape(-1, 2, 3073), strict=True):
        (folder / name).write_bytes(pair.tobytes())
    return records


BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_round_trip(tmp_path, inner):
    folder = tmp_path / inner
    train, test = cifar(folder, BATCHES), cifar(folder, ["test_batch.bin"])
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    data = load_data(f"cifar10:{tmp_path}")
    assert np.array_equal(data.values.reshape(10, -1), train[:, 1:])
    assert data.values.shape == (10, 3, 32, 32)
    assert data.labels.tolist() == list(range(1, 11))
    assert data.classes == tuple("abcdefghij")
    held_out = load_data(f"cifar10:{tmp_path}", split="test")
    assert np.array_equal(held_out.values.reshape(2, -1), test[:, 1:])


def test_cifar10_faults(tmp_path):
    spec, path = f"cifar10:{tmp_path}", tmp_path / "data_batch_3.bin"
    fails(spec, tmp_path / "data_batch_1.bin", "no such file")
    cifar(tmp_path, BATCHES)
    assert load_data(spec).classes[:2] == ("airplane", "automobile")
    good = path.read_bytes()
    faults = {b"": "got 0 bytes", good[:-1]: "got 6145 bytes", good + b"x": "got 6147 bytes"}
    for content, fault in (faults | {b"\x0a" + good[1:]: "from 0 to 9, got 10"}).items():
        path.write_bytes(content)
        fails(spec, path, fault)
    path.write_bytes(good)
    (tmp_path / "batches.meta.txt").write_text("one two")
    fails(spec, tmp_path / "batches.meta.txt", "expected 10 class names, got 2")


# The hub


class Feature:
    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = list(names)


class ImageFeature(Feature):
    pass


class ClassFeature(Feature):
    pass


class Table:
    """As much of ``datasets.Dataset`` as reading takes."""

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
    """A stand-in for the ``datasets`` package; its ``tables`` are by name and split."""
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
    fails("hub:pets", "hub:pets row 0", "its pixels are fractions")
