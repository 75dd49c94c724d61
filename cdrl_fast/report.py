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
Rows = list[dict[str, Any]]
Series = Mapping[str, tuple[ArrayLike, ArrayLike]]

_CELL = 48
_GAP = 2
_GREY = (128, 128, 128)
_PAGE_WIDTH = 920
_HALF_WIDTH = 460
_PLOTTED = 200
_INK = "#1f2328"
_COLORS = ("#3f7fdc", "#e07b39", "#2fa074", "#b95bb0", "#c9a227", "#7d8590")
_NUMBER = '<td class="number">'
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
  --page: #f5f6f8; --card: #fff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #d5dae1; --soft: #98a2ae;
  --line: #30363f; --page: #101317; --card: #181c22; }} }}
* {{ box-sizing: border-box; margin: 0; }}
body {{ padding: 2.5rem 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
header, main {{ max-width: 62rem; margin: 0 auto; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }}
h2 {{ font-size: 1.15rem; }}
p {{ max-width: 46rem; }}
header p, figcaption, th {{ color: var(--soft); }}
section {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 1.5rem; margin-top: 1.5rem; padding: 1.25rem 1.4rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }}
section > * {{ grid-column: 1 / -1; min-width: 0; }}
section > .half {{ grid-column: auto; align-self: end; }}
img {{ display: block; max-width: 100%; height: auto; }}
.pixels {{ image-rendering: pixelated; border-radius: 3px; }}
@media (max-width: 62rem) {{ .pixels {{ image-rendering: auto; }} }}
figcaption {{ margin-top: .45rem; font-size: .88rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .32rem 2rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }}
tr:last-child td {{ border-bottom: 0; }}
tr > :last-child {{ padding-right: 0; }}
.number {{ text-align: right; white-space: nowrap; }}
@media print {{ section {{ break-inside: avoid; }} }}
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
    clouds: Sequence[NDArray[np.float64]], titles: Sequence[str], width: float, reach: float
) -> Figure:
    """Scatter plots in a row, ``width`` inches each, all on the square from -reach to reach."""
    figure, axes = _new_figure(width * len(clouds), width + 0.1, len(clouds))
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
    cloud = _checked_points(points, "points")
    return _scatter_row([cloud], [title], 4.7, 1.06 * float(np.abs(cloud).max()) or 1.0)


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


def _image_tag(source: str, size: tuple[int, int], text: str, *, pixels: bool = False) -> str:
    kind = ' class="pixels"' if pixels else ""
    return f'<img{kind} src="{source}" width="{size[0]}" height="{size[1]}" alt="{escape(text)}">'


def _svg(figure: Figure) -> tuple[str, tuple[int, int]]:
    """``figure`` as the data URI of an SVG, and its size in CSS pixels."""
    themed, buffer = figure.get_gid() == _THEMED, io.StringIO()
    figure.savefig(buffer, format="svg", transparent=themed, dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    if themed:
        text = text.replace(_INK, "currentColor").replace("</style>", f"{_SVG_THEME}</style>", 1)
    width, height = figure.get_size_inches()
    return _data_uri("svg+xml", text.encode()), (round(96 * width), round(96 * height))


def _cell(value: object) -> str:
    """One table cell: numbers to the right and floats to 4 digits; text is escaped."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if value is None:
        return "<td></td>"
    if isinstance(value, Real) and not isinstance(value, bool):
        text = str(value) if isinstance(value, Integral) else f"{float(value):.4g}"
        return f"{_NUMBER}{text}</td>"
    return f"<td>{escape(str(value))}</td>"


class Report:
    """One HTML page, built from the top down and complete in its file.

    Every text is escaped; the caption of a picture is its alternative text too. Pictures added
    with ``half=True`` stand side by side where the window is wide enough.

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

    def _picture(self, picture: str, caption: str, half: bool) -> None:
        kind = ' class="half"' if half else ""
        self._add(f"<figure{kind}>{picture}<figcaption>{escape(caption)}</figcaption></figure>")

    def section(self, title: str) -> None:
        """Begin a section; what is added from here on stands in it."""
        self._sections.append([f"<h2>{escape(title)}</h2>"])

    def text(self, text: str) -> None:
        """Add text; an empty line begins a new paragraph."""
        for paragraph in text.split("\n\n"):
            self._add(f"<p>{escape(paragraph.strip())}</p>")

    def image(self, image: Image.Image, caption: str, *, half: bool = False) -> None:
        """Add a picture as PNG, pixel for pixel: a browser that enlarges it does not blur it."""
        self._picture(_image_tag(_png(image), image.size, caption, pixels=True), caption, half)

    def figure(self, figure: Figure, caption: str, *, half: bool = False) -> None:
        """Add a matplotlib figure as SVG.

        The figures of this module take the page's colours; any other keeps its own.
        """
        source, size = _svg(figure)
        self._picture(_image_tag(source, size, caption), caption, half)

    def table(
        self,
        rows: Sequence[Mapping[str, object] | Sequence[object]],
        header: Sequence[str] | None = None,
    ) -> None:
        """Add a table.

        Args:
            rows: mappings from column to value (a missing one leaves the cell empty), or lists.
            header: the columns in order; by default the keys of the mappings as they first occur.

        Raises:
            ValueError: lists without ``header`` or of another length than it.
        """
        if header is None:
            if not all(isinstance(row, Mapping) for row in rows):
                raise ValueError("table: rows that are lists need header")
            header = list(dict.fromkeys(key for row in rows for key in row))  # type: ignore[misc]
        lines = [
            [row.get(key) for key in header] if isinstance(row, Mapping) else row for row in rows
        ]
        if any(len(line) != len(header) for line in lines):
            raise ValueError(f"table: expected {len(header)} values in every row")
        cells = [[_cell(value) for value in line] for line in lines]
        top = ""
        for index, name in enumerate(header):
            kind = ' class="number"' if any(_NUMBER in line[index] for line in cells) else ""
            top += f'<th{kind} scope="col">{escape(str(name))}</th>'
        body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in cells)
        self._add(
            f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table></div>"
        )

    def animation(
        self,
        frames: Sequence[Image.Image],
        caption: str,
        milliseconds: int | Sequence[int] = 150,
        *,
        half: bool = False,
    ) -> None:
        """Add pictures of one size that play in a loop, as a lossless animated PNG.

        Args:
            frames: one or more pictures; a reader who asked for less motion sees only the last.
            caption: what it shows.
            milliseconds: how long each frame stays: one number, or one for each.
            half: as in the other pictures.

        Raises:
            ValueError: no frame, unequal sizes or modes, or not as many times as frames.
        """
        if len({(frame.size, frame.mode) for frame in frames}) != 1:
            raise ValueError("frames: expected one or more pictures of one size and mode")
        times = [milliseconds] * len(frames) if isinstance(milliseconds, int) else milliseconds
        if len(times) != len(frames):
            raise ValueError(f"milliseconds: expected {len(frames)}, got {len(times)}")
        options: dict[str, Any] = {"duration": list(times), "loop": 0}
        film = _png(frames[0], save_all=True, append_images=list(frames[1:]), **options)
        # The still one is for readers who asked their system for less motion.
        picture = (
            f'<picture><source media="(prefers-reduced-motion: reduce)" '
            f'srcset="{_png(frames[-1])}">'
            f"{_image_tag(film, frames[0].size, caption, pixels=True)}</picture>"
        )
        self._picture(picture, caption, half)

    def html(self) -> str:
        """The page as text."""
        subtitle = f"<p>{escape(self.subtitle)}</p>\n" if self.subtitle else ""
        sections = ("<section>\n" + "\n".join(blocks) + "\n</section>" for blocks in self._sections)
        return _PAGE.format(title=escape(self.title), subtitle=subtitle, body="\n".join(sections))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to ``path``, whole or not at all; folders are made as needed.

        Raises:
            OSError: the file cannot be written; one that was there stays as it was.
        """
        _write_atomic(path, self.html().encode())


def _read_log(path: Path) -> Rows:
    """The lines of a training log that carry an iteration, in order of iteration.

    A run that was taken up again from a checkpoint repeats iterations: the later line counts.

    Raises:
        DataError: no such file, or a line other than the last that is not a JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path}: no training log; give run_folder=None for a page without curves")
    lines = path.read_bytes().decode(errors="replace").rstrip().split("\n")
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line or "{}")
            if "iteration" not in row:
                continue
            row["iteration"] = float(row["iteration"])
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break  # the run was stopped while it wrote this line
            raise DataError(
                f"{path}, line {number}: expected a JSON object, got {line[:60]!r}"
            ) from error
        while rows and rows[-1]["iteration"] > row["iteration"]:
            rows.pop()
        rows.append(row)
    return rows


def _curve(rows: Rows, name: str) -> NDArray[np.float64]:
    """(2, n): the iterations and finite values of the rows that have ``name``."""
    pairs = [
        (row["iteration"], float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T


def _add_curves(report: Report, title: str, rows: Rows, labels: Mapping[str, str]) -> None:
    """Add a section with one plot for each name in ``labels`` that some row has a value for."""
    curves = {label: _curve(rows, name) for name, label in labels.items()}
    curves = {label: curve for label, curve in curves.items() if curve.size}
    if not curves:
        return
    report.section(title)
    seconds = _curve(rows, "seconds")
    if seconds.size:
        iterations = f"{seconds[0].max():.0f} iterations"
        report.text(f"{iterations} in {_duration(float(seconds[1].max()))}.")
    for label, (x, y) in curves.items():
        # A long log has more entries than a plot has pixels.
        pieces = np.array_split(np.arange(x.size), min(x.size, _PLOTTED))
        means = [np.array([values[piece].mean() for piece in pieces]) for values in (x, y)]
        figure = curve_figure(
            {label: (means[0], means[1])},
            xlabel="iteration",
            ylabel=label,
            log_y=bool(y.min() > 0 and y.max() > 100 * y.min()),
        )
        caption = f"{label}: {y[-1]:.4g} at iteration {x[-1]:.0f}."
        if x.size > _PLOTTED:
            low, high = ([limit(y[piece]) for piece in pieces] for limit in (np.min, np.max))
            figure.axes[0].fill_between(means[0], low, high, color=_COLORS[0], alpha=0.2, lw=0)
            caption += f" Mean and range of every {x.size / _PLOTTED:.0f} log entries."
        report.figure(figure, caption, half=True)


def _add_log(report: Report, rows: Rows) -> None:
    """Add what a training run logged: losses in one section, quality in another."""
    quality: Rows = [
        {**row["metrics"], "iteration": row["iteration"]}
        for row in rows
        if isinstance(row.get("metrics"), dict)
    ]
    names = {name: name for row in quality for name in row if name != "iteration"}
    _add_curves(report, "Training", rows, _FIELDS)
    _add_curves(report, "Quality during training", quality, names)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` indices below ``count``, evenly apart, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _duration(seconds: float) -> str:
    """A time for reading: microseconds to hours."""
    if seconds >= 60:
        hours, rest = divmod(round(seconds), 3600)
        minutes, rest = divmod(rest, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _add_image_chains(
    report: Report, samples: torch.Tensor, states: Sequence[torch.Tensor], labels: Sequence[str]
) -> None:
    """Add the grid of image samples, and the film strip and the animation of their chains."""
    cell = _cell_scale(_checked_images(samples, "samples")) * samples.shape[3] + _GAP
    columns = min(len(samples), max(1, _PAGE_WIDTH // cell))
    shown = samples[: 6 * columns]
    report.section("Samples")
    caption = f"The first {len(shown)} of {len(samples)} samples."
    report.image(image_grid(shown, columns=columns), caption)
    if not states:
        return
    report.section("From noise to sample")
    few = _spread(len(states), max(2, _PAGE_WIDTH // cell))
    strip = film_strip([states[i][:6] for i in few], labels=[labels[i] for i in few])
    caption = "One chain a row: noise on the left, the sample on the right."
    report.image(strip, caption, half=strip.width <= _HALF_WIDTH)
    columns = max(1, _HALF_WIDTH // cell)
    many = [states[i][: 6 * columns] for i in _spread(len(states), 48)]
    frames = [image_grid(state, columns=columns) for state in many]
    caption = f"{len(many[0])} chains at work, from noise to samples."
    report.animation(frames, caption, _times(len(frames)), half=True)


def _add_point_chains(
    report: Report, samples: torch.Tensor, states: Sequence[torch.Tensor], labels: Sequence[str]
) -> None:
    """Add the plot of 2-D samples, and the animation and the row of plots of their chains."""
    figure = scatter_figure(samples, "")
    report.section("Samples")
    report.figure(figure, f"All {len(samples)} samples.", half=True)
    if not states:
        return
    clouds = [_checked_points(state, f"trace_states[{i}]") for i, state in enumerate(states)]
    # The frame holds every sample. Far noise may lie outside, or samples would be a small blot.
    spread = np.quantile(np.abs(np.concatenate(clouds)), 0.95)
    reach = 1.06 * float(max(spread, np.abs(clouds[-1]).max())) or 1.0
    frames = [_point_frame(clouds[i], reach) for i in _spread(len(states), 48)]
    caption = f"{len(clouds[0])} chains at work, from noise to samples."
    report.animation(frames, caption, _times(len(frames)), half=True)
    few = _spread(len(states), 8)
    row = _scatter_row([clouds[i] for i in few], [labels[i] for i in few], 1.2, reach)
    report.figure(row, "From noise to samples; some of the noise lies outside the frames.")


def _times(frames: int) -> list[int]:
    """Milliseconds of each frame: about three seconds in all, then a rest on the last."""
    return [min(400, max(60, 3000 // frames))] * (frames - 1) + [1600]


def _point_frame(cloud: NDArray[np.float64], reach: float) -> Image.Image:
    """One frame of an animation of 2-D points within ±``reach``, on a transparent ground."""
    from PIL import Image

    side, size = 150, 3
    edges = np.linspace(-reach, reach, side + 1)
    counts = np.histogram2d(-cloud[:, 1], cloud[:, 0], bins=(edges, edges))[0]
    pixels = np.full((side, side, 4), (63, 127, 220, 0), dtype=np.uint8)
    pixels[..., 3] = 255 * (1 - 0.45**counts)
    return Image.fromarray(pixels.repeat(size, axis=0).repeat(size, axis=1))


def _flat(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) with every digit of a float."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs


def _versions() -> list[tuple[str, str]]:
    try:
        own = importlib.metadata.version("cdrl-fast")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed, run from its source"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return [
        ("cdrl-fast", own),
        ("Python", platform.python_version()),
        ("PyTorch", torch.__version__),
        ("NumPy", np.__version__),
        ("System", platform.platform()),
        ("Device", device),
        ("Written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]


def _add_table(report: Report, title: str, table: Table | None, header: tuple[str, str]) -> None:
    """Add a section with ``table``, if there is one; a mapping has its two columns named."""
    if not table:
        return
    report.section(title)
    if isinstance(table, Mapping):
        report.table(list(table.items()), header=header)
    else:
        report.table(table)


def _add_tables(
    report: Report, metrics: Table | None, timings: Table | None, config: Mapping[str, object]
) -> None:
    """Add the sections of numbers and settings, and the versions of what made the page."""
    _add_table(report, "Metrics", metrics, ("Metric", "Value"))
    if isinstance(timings, Mapping):
        timings = {
            name: _duration(float(value)) if isinstance(value, Real) else value
            for name, value in timings.items()
        }
    _add_table(report, "Timings", timings, ("Work", "Time"))
    _add_table(report, "Configuration", dict(_flat(config)), ("Setting", "Value"))
    _add_table(report, "Versions", dict(_versions()), ("Software", "Version"))


def training_report(
    run_folder: str | os.PathLike[str] | None,
    *,
    samples: torch.Tensor,
    trace_states: Sequence[torch.Tensor] = (),
    trace_labels: Sequence[str] | None = None,
    metrics: Table | None = None,
    timings: Table | None = None,
    config: Mapping[str, object] | None = None,
    title: str = "Training report",
    subtitle: str = "",
) -> Report:
    """Assemble the page about one model: samples, chains, curves, numbers and settings.

    Args:
        run_folder: where the training log ``log.jsonl`` is, or None for no curves.
        samples: images (n, 1 or 3, height, width) in [-1, 1], or points (n, 2).
        trace_states: the states of chains from noise to sample, each shaped as ``samples`` are.
        trace_labels: a short name of each state; by default one state a level, x_T to x_0.
        metrics, timings: name → value, timings in seconds; or rows as :meth:`Report.table` has.
        config: settings, nested as they may be.
        title, subtitle: the heading of the page.

    Raises:
        TypeError, ValueError: samples or states of a wrong shape or dtype, NaN or infinity in them.
        DataError: ``run_folder`` has no log, or one damaged before its last line.
        ImportError: a figure is needed and matplotlib is not installed.
    """
    count = len(trace_states)
    labels = trace_labels or [f"t = {count - 1 - i}" for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"trace_labels: expected {count}, got {len(labels)}")
    report = Report(title, subtitle)
    if np.ndim(samples) == 2:
        _add_point_chains(report, samples, trace_states, labels)
    else:
        _add_image_chains(report, samples, trace_states, labels)
    if run_folder is not None:
        _add_log(report, _read_log(Path(run_folder) / "log.jsonl"))
    _add_tables(report, metrics, timings, config or {})
    return report
