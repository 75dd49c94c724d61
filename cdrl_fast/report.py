"""Pictures of samples, and one self-contained HTML page that shows a model.

Images are tensors in [-1, 1]; 2-D points are plotted. A :class:`Report` is one file with every
picture inside it: it loads nothing, runs no script and follows the reader's light or dark theme.
Matplotlib is imported only where a figure is drawn, and never through its global state.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import math
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cdrl_fast.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

Table = Mapping[str, object] | Sequence[Mapping[str, object]]
Series = dict[str, tuple[ArrayLike, ArrayLike]]

_CELL = 48
_GAP = 2
_GREY = (128, 128, 128)
_PAGE_WIDTH = 920
_INK = "#1f2328"
_COLORS = ("#3f7fdc", "#e07b39", "#2fa074", "#b95bb0", "#c9a227", "#7d8590")
_THEMED = "cdrl-fast-themed"
_SVG_THEME = "svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d5dae1}}"
_FIELDS = {
    "energy_loss": "Energy loss",
    "initializer_loss": "Initializer loss",
    "energy_gap": "Energy gap",
    "energy_grad_norm": "Gradient norm of the energy",
}
# Besides style, the policy makes a browser refuse whatever is not inside the file.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1f2328; --soft: #5c6570; --line: #d8dde3;
  --page: #f6f7f9; --card: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #d5dae1; --soft: #98a2ae; --line: #30363f;
  --page: #101317; --card: #181c22; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; padding: 2.5rem 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
header, main {{ max-width: 62rem; margin: 0 auto; }}
h1 {{ margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }}
h2 {{ margin: 0; font-size: 1.15rem; }}
p {{ margin: 0; max-width: 46rem; }}
header p, figcaption {{ color: var(--soft); }}
header p {{ margin-top: .4rem; }}
section {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 1.5rem; margin-top: 1.5rem; padding: 1.25rem 1.4rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }}
section > * {{ grid-column: 1 / -1; min-width: 0; }}
section > .half {{ grid-column: auto; }}
figure {{ margin: 0; }}
figure img {{ display: block; max-width: 100%; height: auto; border-radius: 3px; }}
img.pixels {{ image-rendering: pixelated; }}
figcaption {{ margin-top: .45rem; font-size: .88rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .32rem 1.6rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }}
th {{ color: var(--soft); font-weight: 600; white-space: nowrap; }}
tr:last-child td {{ border-bottom: 0; }}
.number {{ text-align: right; white-space: nowrap; }}
@media print {{ body {{ padding: 0; }} section {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
{subtitle}</header>
<main>
{body}
</main>
</body>
</html>
"""


def _checked_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """``images`` as float32 on the CPU, or the error that says what is wrong with it."""
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        what = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {what}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"{name}: expected shape (n, 1 or 3, height, width) with no zero, got "
            f"{tuple(images.shape)}"
        )
    images = images.detach().to("cpu", torch.float32)
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: NaN or infinity in {int((~finite).sum())} images, first {first}")
    return images


def _checked_points(points: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    """``points`` as a float64 array (n, 2) of finite numbers, or the error."""
    if isinstance(points, torch.Tensor):
        points = points.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"{name}: expected shape (n, 2) with n > 0, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: NaN or infinity in {(~np.isfinite(array)).any(1).sum()} points")
    return array


def _cell_scale(images: torch.Tensor) -> int:
    return max(1, round(_CELL / max(images.shape[2:])))


def image_grid(
    images: torch.Tensor, *, columns: int | None = None, scale: int | None = None
) -> Image.Image:
    """Lay images out row by row, grey lines of 2 pixels between them.

    Args:
        images: (n, 1 or 3, height, width), any float dtype and device; clamped to [-1, 1].
        columns: images a row, about sqrt(n) by default.
        scale: integer enlargement without smoothing; by default a cell is about 48 pixels wide.

    Returns:
        An RGB image; places that no image fills are grey.

    Raises:
        TypeError: ``images`` is not a floating-point tensor.
        ValueError: a wrong shape, NaN or infinity, ``columns`` or ``scale`` below 1.
    """
    from PIL import Image

    images = _checked_images(images, "images")
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = _cell_scale(images) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"expected columns >= 1 and scale >= 1, got {columns} and {scale}")
    height, width, rows = height * scale, width * scale, math.ceil(count / columns)
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    pixels = levels.permute(0, 2, 3, 1).numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    canvas = np.full(shape, _GREY, dtype=np.uint8)
    for index, cell in enumerate(pixels):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = cell
    return Image.fromarray(canvas)


def save_image_grid(
    images: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Write :func:`image_grid` to ``path``, whole or not at all; the suffix gives the format.

    Raises:
        TypeError, ValueError: as :func:`image_grid`; ValueError too for an unknown suffix.
        OSError: the file cannot be written; one that was there stays as it was.
    """
    from PIL import Image

    path = Path(path)
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format not in Image.SAVE:
        raise ValueError(f"path: expected an image suffix such as .png, got {path.name!r}")
    buffer = io.BytesIO()
    image_grid(images, columns=columns, scale=scale).save(buffer, format=file_format)
    _write_atomic(path, buffer.getvalue())


def film_strip(
    states: Sequence[torch.Tensor], *, labels: Sequence[str] | None = None
) -> Image.Image:
    """Show chains level by level: one row a sample, one column a state, from noise to sample.

    Args:
        states: tensors of one shape (n, 1 or 3, height, width), each clamped to [-1, 1].
        labels: a short text to stand above each column.

    Raises:
        TypeError: a state is not a floating-point tensor.
        ValueError: no state, unequal shapes, NaN or infinity, or not as many labels as states.
    """
    from PIL import Image, ImageDraw, ImageFont

    checked = [_checked_images(state, f"states[{i}]") for i, state in enumerate(states)]
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
    step = (grid.width + _GAP) // len(checked)
    for column, label in enumerate(labels):
        # A picture of its own for each label: a long one is cut, not written over the next.
        plate = Image.new("RGB", (step - _GAP, bar - _GAP), (48, 52, 58))
        draw = ImageDraw.Draw(plate)
        left = max(2, (plate.width - draw.textlength(label, font=font)) / 2)
        draw.text((left, 2), label, fill=(236, 239, 243), font=font)
        strip.paste(plate, (column * step, 0))
    return strip


def _new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of ``width`` by ``height`` inches and its axes in a row, in the report's style."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "cdrl-fast[demo]"') from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.set_gid(_THEMED)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.tick_params(which="both", colors=_INK, labelsize=8)
        panel.spines[:].set(color=_INK, linewidth=0.6)
        for text in (panel.title, panel.xaxis.label, panel.yaxis.label, panel.yaxis.offsetText):
            text.set(color=_INK, fontsize=9)
    return figure, axes


def _scatter_row(
    clouds: Sequence[NDArray[np.float64]], titles: Sequence[str], width: float
) -> Figure:
    """Scatter plots in a row, ``width`` inches each, all on the same square."""
    figure, axes = _new_figure(width * len(clouds), width + 0.1, len(clouds))
    reach = 1.06 * max(float(np.abs(cloud).max()) for cloud in clouds) or 1.0
    for panel, cloud, title in zip(axes, clouds, titles, strict=True):
        # Thousands of points would be thousands of vector shapes: they go in as one picture.
        area = min(9.0, max(1.0, 700 * width / len(cloud)))
        panel.scatter(*cloud.T, s=area, color=_COLORS[0], alpha=0.6, lw=0, rasterized=True)
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
        if width < 3:
            panel.set(xticks=[], yticks=[])
    return figure


def scatter_figure(points: ArrayLike | torch.Tensor, title: str) -> Figure:
    """Plot 2-D samples, shape (n, 2), on a square centred at the origin that holds them all.

    Raises:
        ValueError: a wrong shape, NaN or infinity.
        ImportError: matplotlib is not installed.
    """
    return _scatter_row([_checked_points(points, "points")], [title], 4.8)


def density_figure(
    grids: Sequence[tuple[str, ArrayLike]],
    extent: tuple[float, float, float, float],
) -> Figure:
    """Draw a row of heat maps of log-densities, each known up to a constant.

    Args:
        grids: (title, values) with values (rows, columns), the first row at the least y. Each map
            is measured from its own maximum and shows the 10 nats below it; -inf is allowed.
        extent: (x_min, x_max, y_min, y_max).

    Raises:
        ValueError: no map, a map that is not 2-D, or with NaN, +inf or no finite value.
        ImportError: matplotlib is not installed.
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
    bar.set_label("log-density below its maximum", color=_INK, fontsize=8)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.outline.set(edgecolor=_INK, linewidth=0.6)
    return figure


def curve_figure(series: Series, *, xlabel: str, ylabel: str, log_y: bool = False) -> Figure:
    """Plot curves over one pair of axes.

    Args:
        series: name → (x, y), both of one length; NaN leaves a gap. More than one gets a legend.
        xlabel, ylabel: names of the axes.
        log_y: logarithmic y axis, which leaves out what is not positive.

    Raises:
        ValueError: no series, or x and y that do not pair up.
        ImportError: matplotlib is not installed.
    """
    if not series:
        raise ValueError("series: expected one or more curves, got none")
    figure, (panel,) = _new_figure(4.7, 2.9)
    for index, (name, (x, y)) in enumerate(series.items()):
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"series: {name!r} has x of shape {x.shape} and y of shape {y.shape}")
        marker = "o" if len(x) <= 30 else ""
        color = _COLORS[index % len(_COLORS)]
        panel.plot(x, y, label=name, color=color, lw=1.5, marker=marker, markersize=3)
    panel.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    panel.grid(color=_INK, alpha=0.12, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return figure


def _write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Put ``content`` at ``path`` by a rename, so that a reader sees the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(image: Image.Image, **options: Any) -> str:
    """``image`` as the data URI of a PNG; ``options`` as for Pillow's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return _data_uri("png", buffer.getvalue())


def _svg(figure: Figure) -> tuple[str, int, int]:
    """``figure`` as the data URI of an SVG, its width and its height in CSS pixels."""
    import matplotlib

    themed, buffer = figure.get_gid() == _THEMED, io.StringIO()
    # Without a salt the ids in the file, and so the page, would differ from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "cdrl-fast", "svg.fonttype": "path"}):
        figure.savefig(
            buffer, format="svg", transparent=themed, dpi=200, metadata={"Date": None}
        )
    text = buffer.getvalue()
    if themed:
        text = text.replace("</style>", f"{_SVG_THEME}</style>", 1).replace(_INK, "currentColor")
        text = text.replace("color:currentColor", f"color:{_INK}", 1)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return _data_uri("svg+xml", text.encode()), width, height


def _cell(value: object) -> str:
    """One table cell: numbers to the right and floats to 4 digits; text is escaped."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if value is None:
        return "<td></td>"
    if isinstance(value, Real) and not isinstance(value, bool):
        text = str(value) if isinstance(value, Integral) else f"{float(value):.4g}"
        return f'<td class="number">{text}</td>'
    return f"<td>{escape(str(value))}</td>"


class Report:
    """One HTML page, built from the top down and complete in its file.

    Every text is escaped; the caption of a picture is its alternative text too.

    Args:
        title: the page's heading and window title.
        subtitle: a line under the heading.

    Example:
        >>> report = Report("Digits")
        >>> report.section("Samples")
        >>> report.image(image_grid(torch.zeros(4, 1, 8, 8)), "Four grey squares")
        >>> report.write("report.html")  # doctest: +SKIP
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[list[str]] = []

    def _add(self, block: str) -> None:
        if not self._sections:
            self._sections.append([])
        self._sections[-1].append(block)

    def _picture(self, picture: str, caption: str, kind: str = "") -> None:
        opening = f'<figure class="{kind}">' if kind else "<figure>"
        self._add(f"{opening}{picture}<figcaption>{escape(caption)}</figcaption></figure>")

    def section(self, title: str) -> None:
        """Begin a section; what is added from here on stands in it."""
        self._sections.append([f"<h2>{escape(title)}</h2>"])

    def text(self, text: str) -> None:
        """Add text; an empty line begins a new paragraph."""
        for paragraph in text.split("\n\n"):
            self._add(f"<p>{escape(paragraph.strip())}</p>")

    def image(self, image: Image.Image, caption: str) -> None:
        """Add a picture as PNG, pixel for pixel: a browser that enlarges it does not blur it."""
        self.animation([image], caption)

    def figure(self, figure: Figure, caption: str, *, half: bool = False) -> None:
        """Add a matplotlib figure as SVG; ``half`` lets two stand side by side on a wide page.

        The figures of this module take the page's colours; any other keeps its own.
        """
        source, width, height = _svg(figure)
        size = f'width="{width}" height="{height}"'
        picture = f'<img src="{source}" alt="{escape(caption)}" {size}>'
        self._picture(picture, caption, "half" if half else "")

    def table(
        self,
        rows: Sequence[Mapping[str, object]] | Sequence[Sequence[object]],
        header: Sequence[str] | None = None,
    ) -> None:
        """Add a table.

        Args:
            rows: mappings from column to value (a missing one leaves the cell empty), or lists.
            header: the columns in order; by default the keys of the mappings as they first occur.

        Raises:
            ValueError: lists without ``header`` or of another length than it.
        """
        keyed = [row for row in rows if isinstance(row, Mapping)]
        if header is None and len(keyed) == len(rows):
            header = list(dict.fromkeys(key for row in keyed for key in row))
        if header is None:
            raise ValueError("table: rows that are lists need header")
        cells = [
            [row.get(key) for key in header] if isinstance(row, Mapping) else list(row)
            for row in rows
        ]
        if any(len(row) != len(header) for row in cells):
            raise ValueError(f"table: expected {len(header)} values in every row")
        numbers = [
            bool(cells) and all('class="number"' in _cell(row[i]) for row in cells)
            for i in range(len(header))
        ]
        top = "".join(
            f'<th class="number" scope="col">{escape(str(name))}</th>'
            if number
            else f'<th scope="col">{escape(str(name))}</th>'
            for name, number in zip(header, numbers, strict=True)
        )
        body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells)
        self._add(
            f'<div class="scroll"><table><thead><tr>{top}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>"
        )

    def animation(
        self,
        frames: Sequence[Image.Image],
        caption: str,
        milliseconds: int | Sequence[int] = 150,
    ) -> None:
        """Add pictures of one size that play in a loop, as a lossless animated PNG.

        Args:
            frames: one or more pictures; a reader who asked for less motion sees only the last.
            caption: what it shows.
            milliseconds: how long each frame stays: one number, or one for each.

        Raises:
            ValueError: no frame, unequal sizes, or not as many times as frames.
        """
