"""Tests of published file formats: exact pixels, and a message that names the file of a fault."""

from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest
import torch

from cdrl_fast.data import load_data
from tests.data.data_cases import CIFAR10_TRAIN, COLOUR, GREY, LABELS, cifar10_files, fails


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
        content = gzip.compress(idx(array), mtime=0) if zipped else idx(array)
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


CORRUPT = gzip.compress(idx(GREY), mtime=0)


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
    complete = path.read_bytes()
    path.write_bytes(complete[:-30])
    fails(f"npz:{path}", path, "not a complete .npz file")
    path.write_bytes(complete.replace(GREY.tobytes()[:8], b"damaged!"))
    fails(f"npz:{path}", path, "cannot read 'images'")
    np.save(tmp_path / "b.npy", GREY)
    fails(f"npz:{tmp_path / 'b.npy'}", "b.npy", "not a complete .npz file")


# CIFAR-10


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_round_trip(tmp_path, inner):
    folder = tmp_path / inner
    train, test = cifar10_files(folder, CIFAR10_TRAIN), cifar10_files(folder, ["test_batch.bin"])
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
    cifar10_files(tmp_path, CIFAR10_TRAIN)
    assert load_data(spec).classes[:2] == ("airplane", "automobile")
    good = path.read_bytes()
    faults = {b"": "got 0 bytes", good[:-1]: "got 6145 bytes", good + b"x": "got 6147 bytes"}
    for content, fault in (faults | {b"\x0a" + good[1:]: "from 0 to 9, got 10"}).items():
        path.write_bytes(content)
        fails(spec, path, fault)
    path.write_bytes(good)
    (tmp_path / "batches.meta.txt").write_text("one two")
    fails(spec, tmp_path / "batches.meta.txt", "expected 10 class names, got 2")
