"""Tests of large data sets: memory-mapped arrays, and the published files of ImageNet at 32×32."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl_fast.data import load_data
from tests.data.data_cases import COLOUR, GREY, IMAGENET_TRAIN, LABELS, fails, imagenet32_files

# NPY


@pytest.mark.parametrize(
    ("stored", "expected"), [(GREY, GREY[:, None]), (GREY[:, None], GREY[:, None]), (COLOUR,) * 2]
)
def test_npy_is_mapped_and_read_unchanged(tmp_path, stored, expected):
    np.save(tmp_path / "a.npy", stored)
    data = load_data(f"npy:{tmp_path / 'a.npy'}")
    assert np.array_equal(data.values, expected)
    assert (data.labels, data.classes, data.maximum) == (None, (), 255)
    base = data.values
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    samples, _ = data.batch([2, 0])
    in_memory = np.divide(expected[[2, 0]].astype(np.float32) * 2, np.float32(255)) - 1
    assert np.array_equal(samples.numpy(), in_memory)
    samples.zero_()
    assert np.array_equal(np.load(tmp_path / "a.npy"), stored)


def test_npy_labels_come_from_the_file_next_to_it(tmp_path):
    np.save(tmp_path / "a.npy", COLOUR)
    np.save(tmp_path / "a-labels.npy", LABELS)
    data = load_data(f"npy:{tmp_path / 'a.npy'}")
    assert (data.labels.tolist(), data.classes) == ([3, 1, 2, 3], ("0", "1", "2"))
    kept, held_out = data.split(0.25)
    assert (len(kept), len(held_out)) == (3, 1)
    np.save(tmp_path / "a-labels.npy", LABELS[:3])
    fails(f"npy:{tmp_path / 'a.npy'}", "expected 4 integer labels")


def test_npy_faults(tmp_path):
    path = tmp_path / "a.npy"
    fails(f"npy:{path}", path, "no such file")
    wrong = (GREY.astype(float), GREY[0], COLOUR.transpose(0, 2, 3, 1), COLOUR[:, :2])
    for array in wrong:
        np.save(path, array)
        fails(f"npy:{path}", path, f"{array.dtype} of {array.shape}; channels come before")
    np.save(path, GREY.astype(object))
    fails(f"npy:{path}", path, "is not a complete .npy file of numbers")
    np.save(path, GREY)
    path.write_bytes(path.read_bytes()[:-1])
    fails(f"npy:{path}", path, "is not a complete .npy file of numbers")


# ImageNet


@pytest.mark.parametrize("kind", [2, 4, 5, "npz"])
def test_imagenet32_round_trip(tmp_path, kind):
    options = {"archives": True} if kind == "npz" else {"protocol": kind}
    rows, labels = imagenet32_files(tmp_path, IMAGENET_TRAIN, **options)
    val_rows, val_labels = imagenet32_files(tmp_path, ["val_data"], **options)
    for split, pixels, expected in (("train", rows, labels), ("test", val_rows, val_labels)):
        data = load_data(f"imagenet32:{tmp_path}", split=split)
        # Planes of red, green and blue, each row by row.
        assert np.array_equal(data.values.reshape(-1, 3072), pixels)
        assert data.values[1, 2, 31, 0] == pixels[1, 2 * 1024 + 31 * 32]
        assert data.labels.tolist() == expected
        assert data.classes == tuple(str(i) for i in range(1, 1001))
        assert data.maximum == 255


def published(**changes: object) -> dict[str, object]:
    """Return the content of a published file, with changes."""
    rows = np.zeros((2, 3072), np.uint8)
    return {"data": rows, "labels": [1, 2], "mean": rows.mean(0)} | changes


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([1, 2], "expected 'data' and 'labels', got list"),
        ({"data": 1, "x": 2}, "got ['data', 'x']"),
        (published(data=np.zeros((2, 3072))), "(n, 3072), got float64 of shape (2, 3072)"),
        (published(data=np.zeros((2, 12288), np.uint8)), "got uint8 of shape (2, 12288)"),
        (published(data=[0] * 3072), "got a list"),
        (
            published(labels=[1]),
            "expected 2 integer labels, one per image, got int64 of shape (1,)",
        ),
        (published(labels=[1.5, 2]), "expected 2 integer labels, one per image, got a list"),
        (published(labels=[[1], [1, 2]]), "expected 2 integer labels"),
        (published(labels=[0, 1]), "labels must be from 1 to 1000, got 0 to 1"),
        (published(labels=[1, 1001]), "got 1 to 1001"),
        (published(labels=Path("x")), "it refers to pathlib"),
    ],
)
def test_imagenet32_faults(tmp_path, content, fault):
    imagenet32_files(tmp_path, IMAGENET_TRAIN)
    path = tmp_path / "train_data_batch_7"
    path.write_bytes(pickle.dumps(content))
    fails(f"imagenet32:{tmp_path}", path, fault)


def test_missing_and_damaged_imagenet32(tmp_path):
    spec, path = f"imagenet32:{tmp_path}", tmp_path / "train_data_batch_10"
    imagenet32_files(tmp_path, IMAGENET_TRAIN[:-1])
    fails(spec, path, "no such file, nor train_data_batch_10.npz")
    fails(spec, tmp_path / "val_data", "no such file", split="test")
    imagenet32_files(tmp_path, IMAGENET_TRAIN)
    complete = path.read_bytes()
    for content in (b"", complete[:-100], b"\x80\x04" + complete[3:], b"not a pickle"):
        path.write_bytes(content)
        fails(spec, path, "is not a complete pickle of arrays")
    path.unlink()
    archive = path.with_suffix(".npz")
    archive.write_bytes(b"PK")
    fails(spec, archive, "is not a complete .npz file; download it again")
    np.savez(archive, data=np.zeros((2, 3072), np.uint8), labels=np.array([1, None]))
    fails(spec, archive, "cannot read 'labels'")
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("x", "")
    fails(spec, archive, "got []")


class FolderMaker:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def test_a_pickle_runs_no_code(tmp_path):
    imagenet32_files(tmp_path, IMAGENET_TRAIN)
    (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps(FolderMaker(tmp_path / "new")))
    fails(f"imagenet32:{tmp_path}", tmp_path / "train_data_batch_1", "which is not allowed")
    assert not (tmp_path / "new").exists()


def test_batches_of_mapped_data_equal_batches_of_data_in_memory(tmp_path):
    imagenet32_files(tmp_path, ["val_data"])
    data = load_data(f"imagenet32:{tmp_path}", split="test")
    np.save(tmp_path / "mapped.npy", data.values)
    mapped = load_data(f"npy:{tmp_path / 'mapped.npy'}")
    assert torch.equal(mapped.batch([1, 0])[0], data.batch([1, 0])[0])
