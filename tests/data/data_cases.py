"""Pixels, files and a check of refusals that the tests of data sets share."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdrl_fast.data import load_data
from cdrl_fast.errors import DataError

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2], dtype=np.uint8)


def fails(spec: str, *fragments: object, **options: Any) -> None:
    """Check that ``load_data`` refuses, with a message that contains every fragment."""
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    for fragment in fragments:
        assert str(fragment) in str(caught.value)


def cifar10_files(folder: Path, names: list[str]) -> np.ndarray:
    """Write two records to each file and return all of them."""
    folder.mkdir(exist_ok=True)
    records = RNG.integers(0, 256, (2 * len(names), 3073), dtype=np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    for name, pair in zip(names, records.reshape(-1, 2, 3073), strict=True):
        (folder / name).write_bytes(pair.tobytes())
    return records


CIFAR10_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
IMAGENET_TRAIN = [f"train_data_batch_{i}" for i in range(1, 11)]


def imagenet32_files(
    folder: Path, names: list[str], *, archives: bool = False, protocol: int = 4
) -> tuple[np.ndarray, list[int]]:
    """Write two images to each file, as published, and return all rows and labels."""
    rows = RNG.integers(0, 256, (2 * len(names), 3072), dtype=np.uint8)
    labels = [1, 1000, *RNG.integers(1, 1001, len(rows) - 2).tolist()]
    for i, name in enumerate(names):
        pair = slice(2 * i, 2 * i + 2)
        content = {"data": rows[pair], "labels": labels[pair], "mean": rows.mean(0)}
        if archives:
            np.savez(folder / f"{name}.npz", **content)
        else:
            (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return rows, labels
