"""Tests of `Dataset` and the checkerboard: exact scaling, subsets, and refused arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cdrl_fast.data import Dataset, checkerboard, in_checkerboard, load_data
from cdrl_fast.errors import DataError


def images(n: int = 10, **changes: Any) -> Dataset:
    values = np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)
    labels = np.arange(n, dtype=np.int64) % 2 + 1
    settings = {"name": "mine", "values": values, "labels": labels, "classes": ("a", "b")}
    return Dataset(**(settings | changes))


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


def test_batch_leaves_points_unchanged_and_is_a_copy():
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
