"""Grids and strips of images, and matplotlib figures in one style."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from cdrl_fast.data.images import as_bytes
from cdrl_fast.storage.folder import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]]
Points = NDArray[np.float64]

INK = "#1f2328"
COLORS = ("#3f7fdc", "#e07b39", "#2fa074", "#b95bb0", "#c9a227", "#7d8590")
THEMED = "cdrl-fast-themed"
"""Group id of figures whose ink takes the page's colour."""
GAP = 2
_CELL = 48
_GREY = (128, 128, 128)


def checked_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """Return ``images`` as float32 on the CPU.

    Raises:
        TypeError, ValueError: not float images (n, 1 or 3, height, width), or NaN or infinity.
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = f"{type(images).__name__} of {getattr(images, 'dtype', 'no dtype')}"
        raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {kind}")
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"{name}: expected shape (n, 1 or 3, height, width), got {shape}")
    images = images.detach().to("cpu", torch.float32)
    bad = (~images.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name}: NaN or infinity in {len(bad)} images, first {int(bad[0])}")
    return images


def checked_points(points: ArrayLike | torch.Tensor, name: str) -> Points:
    """Return ``points`` as a float64 array (n, 2).

    Raises:
        ValueError: another shape, no point, or NaN or infinity.
    """
    if isinstance(points, torch.Tensor):
        points = points.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"{name}: expected shape (n, 2) with n > 0, got {array.shape}")
    bad = (~np.isfinite(array)).any(1).sum()
    if bad:
        raise ValueError(f"{name}: NaN or infinity in {bad} points")
    return array


def cell_scale(images: torch.Tensor) -> int:
    """Return the integer enlargement that makes a cell about 48 pixels wide."""
    return max(1, round(_CELL / max(images.shape[2:])))


def image_grid(
    images: torch.Tensor, *, columns: int | None = None, scale: int | None = None
) -> Image.Image:
    """Arrange images in rows, with grey lines of 2 pixels between them.

    Args:
        images: (n, 1 or 3, height, width), of any float dtype and device; clamped to [-1, 1].
        columns: images per row, about sqrt(n) by default.
        scale: integer enlargement without smoothing; by default a cell is about 48 pixels wide.

    Returns:
        An RGB image; cells without an image are grey.

    Raises:
        TypeError: ``images`` is not a floating-point tensor.
        ValueError: a wrong shape, NaN or infinity, ``columns`` or ``scale`` below 1.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import image_grid
        >>> image_grid(torch.zeros(4, 1, 8, 8), columns=2, scale=4).size
        (66, 66)
    """
    images = checked_images(images, "images")
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = cell_scale(images) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(
            f"columns, scale: expected columns >= 1 and scale >= 1, got {columns} and {scale}"
        )
    height, width, rows = height * scale, width * scale, math.ceil(count / columns)
    levels = as_bytes(images).expand(-1, 3, -1, -1)
    pixels = levels.permute(0, 2, 3, 1).numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    cells = np.full((rows, height + GAP, columns, width + GAP, 3), _GREY, dtype=np.uint8)
    for index, image in enumerate(pixels):
        cells[index // columns, :height, index % columns, :width] = image
    canvas = cells.reshape(rows * (height + GAP), columns * (width + GAP), 3)
    return Image.fromarray(canvas[:-GAP, :-GAP])


def save_image_grid(
    images: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Write ``image_grid(images, columns=columns, scale=scale)`` to ``path`` atomically.

    Args:
        images, columns, scale: as in ``image_grid``.
        path: the file, whose suffix decides the format, such as .png or .jpg.

    Raises:
        TypeError, ValueError: as ``image_grid``; ValueError also for an unknown suffix.
        OSError: the file cannot be written; an existing file stays unchanged.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import save_image_grid
        >>> save_image_grid(torch.zeros(4, 1, 8, 8), "grid.png", columns=2)  # doctest: +SKIP
    """
    path = Path(path)
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format not in Image.SAVE:
        raise ValueError(f"path: expected an image suffix such as .png, got {path.name!r}")
    buffer = io.BytesIO()
    image_grid(images, columns=columns, scale=scale).save(buffer, format=file_format)
    write_atomic(path, buffer.getvalue())


def completion_grid(
    images: torch.Tensor, known: torch.Tensor, completions: torch.Tensor, *, truth: bool = False
) -> Image.Image:
    """Show inpainting: per image, one row with its known pixels, then its completions.

    Args:
        images: (n, 1 or 3, height, width), clamped to [-1, 1]; unknown pixels are shown in grey.
        known: bool, broadcastable to ``images``, True where a pixel is known.
        completions: (n·k, 1 or 3, height, width), the k completions of image i being rows i·k to
            i·k + k - 1.
        truth: add the complete image at the end of its row.

    Raises:
        TypeError: ``images`` or ``completions`` are not floating-point tensors.
        ValueError: a wrong shape, NaN or infinity, or not k completions of each image.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import completion_grid
        >>> images, known = torch.zeros(2, 1, 8, 8), torch.ones(8, 8, dtype=torch.bool)
        >>> picture = completion_grid(images, known, torch.zeros(6, 1, 8, 8))
    """
    completions = checked_images(completions, "completions")
    # Unknown pixels may be NaN; 0 is grey.
    masked = checked_images(images.masked_fill(~known, 0.0), "images")
    if len(completions) % len(masked) or completions.shape[1:] != masked.shape[1:]:
        raise ValueError(
            f"completions: expected k per image of images {tuple(masked.shape)}, got shape "
            f"{tuple(completions.shape)}"
        )
    row = [masked[:, None], completions.reshape(len(masked), -1, *masked.shape[1:])]
    if truth:
        row.append(checked_images(images, "images")[:, None])
    cells = torch.cat(row, dim=1)
    return image_grid(cells.flatten(0, 1), columns=cells.shape[1])


def film_strip(
    states: Sequence[torch.Tensor], *, labels: Sequence[str] | None = None
) -> Image.Image:
    """Show chains from noise to sample, with one row per sample and one column per state.

    Args:
        states: tensors of one shape (n, 1 or 3, height, width), each clamped to [-1, 1].
        labels: a short text above each column.

    Raises:
        TypeError: a state is not a floating-point tensor.
        ValueError: no state, unequal shapes, NaN or infinity, or another number of labels.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import film_strip
        >>> strip = film_strip([torch.zeros(3, 1, 8, 8)] * 5, labels=["4", "3", "2", "1", "0"])
        >>> strip.width > strip.height
        True
    """
    checked = [checked_images(state, f"states[{i}]") for i, state in enumerate(states)]
    if len({state.shape for state in checked}) != 1:
        shapes = [tuple(state.shape) for state in checked]
        raise ValueError(f"states: expected one or more tensors of one shape, got {shapes}")
    if labels is not None and len(labels) != len(checked):
        raise ValueError(f"labels: expected {len(checked)}, got {len(labels)}")
    grid = image_grid(torch.stack(checked, dim=1).flatten(0, 1), columns=len(checked))
    if labels is None:
        return grid
    font, bar = ImageFont.load_default(), 18
    strip = Image.new("RGB", (grid.width, grid.height + bar), _GREY)
    strip.paste(grid, (0, bar))
    step = (grid.width + GAP) // len(checked)
    for column, label in enumerate(labels):
        # Each label is drawn on its own plate, which cuts off a long one before the next column.
        plate = Image.new("RGB", (step - GAP, bar - GAP), (48, 52, 58))
        draw = ImageDraw.Draw(plate)
        left = max(2, (plate.width - draw.textlength(label, font=font)) / 2)
        draw.text((left, 2), label, fill=(236, 239, 243), font=font)
        strip.paste(plate, (column * step, 0))
    return strip


def _new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Any]]:
    """Return a figure of ``width`` by ``height`` inches and its row of axes, in one style."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "cdrl-fast[demo]"') from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.set_gid(THEMED)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.tick_params(which="both", colors=INK, labelsize=8)
        panel.spines[:].set(color=INK, linewidth=0.6)
        for text in (panel.title, panel.xaxis.label, panel.yaxis.label, panel.yaxis.offsetText):
            text.set(color=INK, fontsize=9)
    return figure, axes


def scatter_row(
    clouds: Sequence[Points], titles: Sequence[str], width: float, limit: float
) -> Figure:
    """Plot points in a row of panels of ``width`` inches, all with axes from -limit to limit."""
    figure, axes = _new_figure(width * len(clouds), width + 0.1, len(clouds))
    for panel, cloud, title in zip(axes, clouds, titles, strict=True):
        # Rasterized, because thousands of vector shapes would make the file large.
        area = min(9.0, max(1.0, 700 * width / len(cloud)))
        panel.scatter(*cloud.T, s=area, color=COLORS[0], alpha=0.6, lw=0, rasterized=True)
        panel.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
        if width < 3:
            panel.set(xticks=[], yticks=[])
    return figure


def scatter_figure(points: ArrayLike | torch.Tensor, title: str) -> Figure:
    """Plot 2-D points in a square around the origin that contains all of them.

    Args:
        points: (n, 2), of any float dtype and device.
        title: the title of the plot.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import scatter_figure
        >>> scatter_figure(torch.randn(100, 2), "a hundred points").axes[0].get_title()
        'a hundred points'
    """
    cloud = checked_points(points, "points")
    return scatter_row([cloud], [title], 4.7, 1.06 * float(np.abs(cloud).max()) or 1.0)


def density_figure(
    grids: Sequence[tuple[str, ArrayLike]], extent: tuple[float, float, float, float]
) -> Figure:
    """Plot a row of heat maps of log-densities, each known up to a constant.

    Args:
        grids: (title, values) per map, with values (rows, columns), the first row at y_min. Each
            map shows the 10 nats below its own maximum; -inf is allowed.
        extent: (x_min, x_max, y_min, y_max).

    Raises:
        ValueError: no map, or a map that is not 2-D or has NaN, +inf or no finite value.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import numpy as np
        >>> from cdrl_fast.report import density_figure
        >>> x, y = np.meshgrid(np.linspace(-2, 2, 20), np.linspace(-2, 2, 20))
        >>> figure = density_figure([("Gaussian", -(x**2 + y**2) / 2)], extent=(-2, 2, -2, 2))
    """
    if not grids:
        raise ValueError("grids: expected one or more (title, values), got none")
    figure, axes = _new_figure(2.6 * len(grids) + 0.8, 2.9, len(grids))
    for panel, (title, values) in zip(axes, grids, strict=True):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or not array.size or not np.isfinite(array.max()):
            raise ValueError(f"grids: {title!r} must be 2-D with a finite maximum and no NaN")
        relative = np.maximum(array - array.max(), -10.0)
        shown = panel.imshow(
            relative, origin="lower", extent=extent, vmin=-10, vmax=0, cmap="magma"
        )
        panel.set_title(title)
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("log-density below its maximum", color=INK, fontsize=8)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set(edgecolor=INK, linewidth=0.6)
    return figure


def curve_row(panels: Mapping[str, Series], *, xlabel: str) -> Figure:
    """Plot curves in panels side by side that share the quantity on the x axis.

    Args:
        panels: label of the y axis → series, as in `curve_figure`.
        xlabel: label of all x axes.

    Raises:
        ValueError: as in `curve_figure`.
        ImportError: matplotlib is not installed.

    Examples:
        >>> from cdrl_fast.report import curve_row
        >>> loss, norm = {"energy": ([1, 2], [3, 2])}, {"energy": ([1, 2], [9, 5])}
        >>> len(curve_row({"loss": loss, "norm": norm}, xlabel="iteration").axes)
        2
    """
    if not panels:
        raise ValueError("panels: expected one or more, got none")
    figure, axes = _new_figure(3.9 * len(panels), 2.9, len(panels))
    for panel, (ylabel, series) in zip(axes, panels.items(), strict=True):
        _draw_curves(panel, series)
        panel.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def curve_figure(series: Series, *, xlabel: str, ylabel: str, log_y: bool = False) -> Figure:
    """Plot curves over one pair of axes.

    Args:
        series: name → (x, y) or (x, y, half the length of error bars), all of one length; NaN
            leaves a gap. Two series or more get a legend.
        xlabel, ylabel: labels of the axes.
        log_y: logarithmic y axis, without the values that are not positive.

    Raises:
        ValueError: no series, or x and y of different lengths.
        ImportError: matplotlib is not installed.

    Examples:
        >>> from cdrl_fast.report import curve_figure
        >>> figure = curve_figure({"loss": ([1, 2], [3, 2])}, xlabel="iteration", ylabel="loss")
        >>> len(figure.axes)
        1
    """
    figure, (panel,) = _new_figure(4.7, 2.9)
    _draw_curves(panel, series)
    panel.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    return figure


def _draw_curves(panel: Any, series: Series) -> None:
    if not series:
        raise ValueError("series: expected one or more curves, got none")
    for index, (name, curve) in enumerate(series.items()):
        x, y, *error = (np.asarray(values, dtype=np.float64) for values in curve)
        if x.ndim != 1 or any(values.shape != x.shape for values in (y, *error)):
            raise ValueError(f"series: {name!r} has x of shape {x.shape} and y of shape {y.shape}")
        marker, color = "o" if len(x) <= 30 else "", COLORS[index % len(COLORS)]
        style = {"color": color, "lw": 1.5, "marker": marker, "markersize": 3}
        panel.errorbar(x, y, *error, label=name, capsize=2, elinewidth=0.8, **style)
    panel.grid(color=INK, alpha=0.12, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=8, labelcolor=INK)
