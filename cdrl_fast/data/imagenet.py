"""A reader of ImageNet at 32×32 pixels, in its published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_fast.data.dataset import Dataset, labelled, require
from cdrl_fast.data.files import read_npz, read_pickle

CLASSES = 1000
_ROW = 3 * 32 * 32
_TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))


def imagenet32(name: str, folder: Path, split: str) -> Dataset:
    """Return the downsampled ImageNet of Chrabaszcz et al. (2017), arXiv 1707.08819.

    The files are ``train_data_batch_1`` … ``train_data_batch_10``, or ``val_data`` for the split
    ``test``. Each is a pickle, or with the suffix ``.npz`` an archive, of ``data`` (n, 3072), rows
    of three planes, and ``labels`` 1 … 1000, which also name the classes. ``mean`` is not used.

    Raises:
        DataError: a file is missing or damaged, or an array has the wrong shape.
    """
    names = _TRAIN if split == "train" else ("val_data",)
    parts = [_part(folder, stem) for stem in names]
    labels = np.concatenate([labels for _, labels in parts])
    # Each part is freed once it is copied, so that memory never holds the data twice.
    images = np.empty((len(labels), 3, 32, 32), np.uint8)
    end = len(labels)
    while parts:
        rows, _ = parts.pop()
        images[end - len(rows) : end] = rows.reshape(-1, 3, 32, 32)
        end -= len(rows)
        del rows
    classes = tuple(str(label) for label in range(1, CLASSES + 1))
    return labelled(name, images, labels - 1, classes, folder)


def _part(folder: Path, stem: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the rows and labels of one file: the pickle, or the archive if there is no pickle."""
    path = folder / stem
    archive = path.with_suffix(".npz")
    require(
        path.is_file() or archive.is_file(),
        f"{path}: no such file, nor {archive.name}; the folder must contain all published files "
        "of ImageNet 32×32",
    )
    if path.is_file():
        content = read_pickle(path)
    else:
        path, content = archive, read_npz(archive, ("data", "labels"), "download it again")
    require(
        isinstance(content, dict) and {"data", "labels"} <= set(content),
        f"{path}: expected 'data' and 'labels', got "
        f"{sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__}",
    )
    rows, labels = content["data"], _integers(content["labels"])
    require(
        isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (_ROW,),
        f"{path}: expected data uint8 of shape (n, {_ROW}), got {_described(rows)}",
    )
    require(
        labels is not None and labels.shape == (len(rows),),
        f"{path}: expected {len(rows)} integer labels, one per image, got "
        f"{_described(content['labels'] if labels is None else labels)}",
    )
    low, high = int(labels.min(initial=1)), int(labels.max(initial=1))
    require(
        low >= 1 and high <= CLASSES,
        f"{path}: labels must be from 1 to {CLASSES}, got {low} to {high}",
    )
    return rows, labels


def _integers(labels: Any) -> Any:
    """Return a list or an array of integers as int64, or None if it is something else."""
    try:
        array = np.asarray(labels)
    except ValueError:  # a list of lists of several lengths
        return None
    return array.astype(np.int64) if array.dtype.kind in "iu" else None


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}"
