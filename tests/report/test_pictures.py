"""Pictures of samples: geometry, exact pixels, atomic files and refused input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from PIL import Image

from cdrl_fast.report import (
    completion_grid,
    curve_figure,
    curve_row,
    density_figure,
    film_strip,
    image_grid,
    save_image_grid,
    scatter_figure,
)
from tests.report.page_reader import rising

GREY = (128, 128, 128)

# Grids


def test_grid_has_exact_corners_and_separators() -> None:
    images = torch.zeros(5, 3, 2, 4)
    images[0, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0])
    images[3, :, 1, 3] = torch.tensor([-1.0, 1.0, 0.5])
    grid = image_grid(images, columns=2, scale=3)
    assert grid.mode == "RGB"
    assert grid.size == (2 * 12 + 2, 3 * 6 + 2 * 2)
    pixels = np.asarray(grid)
    assert (pixels[:3, :3] == (255, 0, 128)).all()
    assert (pixels[3, 0] == GREY).all()
    assert (pixels[8 + 3 : 8 + 6, 14 + 9 : 14 + 12] == (0, 255, 191)).all()
    assert (pixels[6:8] == GREY).all()
    assert (pixels[:, 12:14] == GREY).all()


def test_grid_goes_row_by_row_and_fills_the_rest_with_grey() -> None:
    pixels = np.asarray(image_grid(rising(5), columns=3, scale=1))
    assert pixels.shape == (2 * 2 + 2, 3 * 3 + 4, 3)
    cells = [pixels[row * 4, column * 5, 0] for row in range(2) for column in range(3)]
    assert cells == [0, 64, 128, 191, 255, 128]
    assert (pixels[4:, 10:] == GREY).all()


def test_grid_clamps() -> None:
    far, edge = torch.tensor([-7.0, 9.0]), torch.tensor([-1.0, 1.0])
    grids = [
        image_grid(values[:, None, None, None].expand(2, 1, 4, 4), columns=2)
        for values in (far, edge)
    ]
    assert grids[0].tobytes() == grids[1].tobytes()
    assert set(np.unique(np.asarray(grids[0]))) == {0, 128, 255}


@pytest.mark.parametrize(("side", "cell"), [(1, 48), (8, 48), (28, 56), (32, 64), (96, 96)])
def test_default_cell_is_visible(side: int, cell: int) -> None:
    assert image_grid(torch.zeros(1, 1, side, side)).size == (cell, cell)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (5, 3), (10, 4)])
def test_default_grid_is_about_square(count: int, columns: int) -> None:
    width, _ = image_grid(torch.zeros(count, 1, 4, 4), scale=1).size
    assert width == columns * 4 + (columns - 1) * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_grid_takes_any_float_dtype_and_gradients(dtype: torch.dtype) -> None:
    exact = image_grid(torch.tensor([[[[-1.0, 0.5], [0.25, 1.0]]]]))
    images = torch.tensor([[[[-1.0, 0.5], [0.25, 1.0]]]], dtype=dtype, requires_grad=True)
    assert image_grid(images).tobytes() == exact.tobytes()


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8), (0, 1, 8, 8), (1, 1, 0, 8), (4, 2)]
)
def test_grid_refuses_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape("images: expected shape (n, 1 or 3, height")):
        image_grid(torch.zeros(shape))


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 8, 8, dtype=torch.uint8), np.zeros((1, 1))])
def test_grid_refuses_other_types_than_float_tensors(images: object) -> None:
    with pytest.raises(TypeError, match=r"images: expected a floating-point torch\.Tensor, got"):
        image_grid(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_grid_refuses_nan_and_infinity(bad: float) -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[2, 0, 3, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity in 1 images, first 2"):
        image_grid(images)


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"scale": 0}, {"columns": -1}])
def test_grid_refuses_sizes_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="columns >= 1 and scale >= 1"):
        image_grid(torch.zeros(2, 1, 8, 8), **wrong)


# Files


def test_saved_grid_reads_back(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / "new" / "grid.png"
    save_image_grid(images, path, columns=3, scale=2)
    with Image.open(path) as read:
        assert read.format == "PNG"
        assert read.tobytes() == image_grid(images, columns=3, scale=2).tobytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_save_refuses_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix such as \.png, got 'grid\.xyz'"):
        save_image_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.xyz")
    assert list(tmp_path.iterdir()) == []


# Film strips


def test_completion_grid_has_a_row_an_image() -> None:
    images = torch.full((2, 1, 8, 8), 1.0)
    known = torch.tensor([False, True])[:, None, None, None]
    completions = torch.tensor([-1.0, 0.0, 1.0, -1.0])[:, None, None, None].expand(4, 1, 8, 8)
    grid = completion_grid(images.masked_fill(~known, float("nan")), known, completions)
    assert grid.size == (3 * 50 - 2, 2 * 50 - 2)
    pixels = np.asarray(completion_grid(images, known, completions, truth=True))[..., 0]
    assert [[pixels[50 * r, 50 * c] for c in range(4)] for r in range(2)] == [
        [128, 0, 128, 255],
        [255, 255, 0, 255],
    ]
    with pytest.raises(ValueError, match=r"completions: expected k per image of images \(2, 1"):
        completion_grid(images, known, completions[:3])
    with pytest.raises(ValueError, match="images: NaN or infinity in 2 images"):
        completion_grid(images / 0 * 0, torch.tensor(True), completions)


def test_film_strip_has_one_row_per_sample_and_one_column_per_state() -> None:
    states = [torch.full((3, 1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 5.0)]
    states[0][1] = 1.0
    strip = film_strip(states)
    assert strip.size == (4 * 50 - 2, 3 * 50 - 2)
    pixels = np.asarray(strip)[..., 0]
    assert [[pixels[50 * r, 50 * c] for c in range(4)] for r in range(3)] == [
        [0, 128, 255, 255],
        [255, 128, 255, 255],
        [0, 128, 255, 255],
    ]


def test_film_strip_labels_stand_above_their_columns() -> None:
    states = [torch.zeros(2, 3, 8, 8)] * 3
    plain, blank = film_strip(states), film_strip(states, labels=["", "", ""])
    named = film_strip(states, labels=["", "a label much wider than its column", ""])
    assert blank.size == (plain.width, plain.height + 18)
    assert named.crop((0, 18, *named.size)).tobytes() == plain.tobytes()
    changed = np.flatnonzero((np.asarray(named) != np.asarray(blank)).any(axis=(0, 2)))
    assert changed.size > 10
    assert changed.min() >= 50
    assert changed.max() < 98


def test_film_strip_refuses_unequal_states_and_labels() -> None:
    state = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="one or more tensors of one shape"):
        film_strip([])
    with pytest.raises(ValueError, match="one or more tensors of one shape"):
        film_strip([state, state[:1]])
    with pytest.raises(ValueError, match="labels: expected 2, got 1"):
        film_strip([state, state], labels=["a"])
    with pytest.raises(ValueError, match=r"states\[1\]: NaN"):
        film_strip([state, state * float("nan")])


# Figures


def test_scatter_holds_every_point() -> None:
    points = torch.tensor([[-3.0, 0.5], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    (axes,) = scatter_figure(points, "Spiral").axes
    assert axes.get_title() == "Spiral"
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), points.detach().numpy())
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-3.18, 3.18))
    assert scatter_figure(np.zeros((2, 2)), "").axes[0].get_xlim() == (-1, 1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (0, 2), (4, 2, 1)])
def test_scatter_refuses_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"points: expected shape \(n, 2\)"):
        scatter_figure(torch.zeros(shape), "")
    with pytest.raises(ValueError, match="points: NaN or infinity in 1 points"):
        scatter_figure([[0.0, 1.0], [float("nan"), float("inf")]], "")


def test_density_is_relative_to_its_maximum() -> None:
    grids: list[tuple[str, ArrayLike]] = [
        ("a", [[100.0, 95.0, 0.0], [-np.inf, 100.0, 99.0]]),
        ("b", np.zeros((2, 2))),
    ]
    figure = density_figure(grids, (-1.0, 1.0, -2.0, 2.0))
    first, second, _ = figure.axes
    assert (first.get_title(), second.get_title()) == ("a", "b")
    np.testing.assert_array_equal(
        first.images[0].get_array(), [[0.0, -5.0, -10.0], [-10.0, 0.0, -1.0]]
    )
    assert tuple(first.images[0].get_extent()) == (-1, 1, -2, 2)
    assert first.images[0].origin == "lower"


@pytest.mark.parametrize("values", [[1.0], np.full((2, 2), -np.inf), [[1.0, np.nan]], [[np.inf]]])
def test_density_refuses_other_grids(values: object) -> None:
    with pytest.raises(ValueError, match="'bad' must be 2-D with a finite maximum"):
        density_figure([("bad", values)], (0, 1, 0, 1))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="grids: expected one or more"):
        density_figure([], (0, 1, 0, 1))


def test_curves_keep_their_values_and_names() -> None:
    series: dict[str, tuple[list[float], list[float]]] = {
        "ours": ([1, 2, 3], [1.0, float("nan"), 100.0]),
        "plain": ([1, 2], [5, 6]),
    }
    (axes,) = curve_figure(series, xlabel="steps", ylabel="time", log_y=True).axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("steps", "time", "log")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, 100.0])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "plain"]
    (single,) = curve_figure({"one": ([0], [0])}, xlabel="", ylabel="").axes
    assert single.get_legend() is None
    assert single.get_yscale() == "linear"


def test_curve_panels_have_error_bars() -> None:
    panels = {"distance": {"a": ([1, 2], [3.0, 5.0], [0.5, 1.0])}, "accuracy": {"a": ([1], [2])}}
    left, right = curve_row(panels, xlabel="cost").axes
    assert [axes.get_ylabel() for axes in (left, right)] == ["distance", "accuracy"]
    assert left.get_xlabel() == right.get_xlabel() == "cost"
    (bars,) = left.collections
    np.testing.assert_array_equal(bars.get_segments(), [[[1, 2.5], [1, 3.5]], [[2, 4], [2, 6]]])
    assert not right.collections
    with pytest.raises(ValueError, match="one or more, got none"):
        curve_row({}, xlabel="")
    with pytest.raises(ValueError, match="'a' has x of shape"):
        curve_row({"distance": {"a": ([1, 2], [3.0, 5.0], [0.5])}}, xlabel="")


def test_curves_refuse_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="'loss' has x of shape"):
        curve_figure({"loss": ([1, 2], [1])}, xlabel="", ylabel="")
    with pytest.raises(ValueError, match="one or more curves"):
        curve_figure({}, xlabel="", ylabel="")
