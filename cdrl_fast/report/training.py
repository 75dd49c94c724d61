"""Reports about one model: samples, chains, training curves, figures and settings."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cdrl_fast._extension import VERSION
from cdrl_fast.errors import DataError
from cdrl_fast.report.page import Report
from cdrl_fast.report.pictures import (
    COLORS,
    GAP,
    Points,
    cell_scale,
    checked_images,
    checked_points,
    curve_figure,
    film_strip,
    image_grid,
    scatter_figure,
    scatter_row,
)

Table = Mapping[str, object] | Sequence[Mapping[str, object]]
Rows = list[dict[str, Any]]

_PAGE_WIDTH = 920
_HALF_WIDTH = 460
_PLOTTED = 200
_FRAMES = 48
_FIELDS = {
    "energy_loss": "Energy loss",
    "initializer_loss": "Initializer loss",
    "energy_gap": "Energy gap",
    "energy_grad_norm": "Gradient norm of the energy",
    "initializer_grad_norm": "Gradient norm of the initializer",
}
_RENAMED_KEYS = {"share_of_floor": "share_of_roofline", "frechet_floor": "frechet_held_out"}
"""Keys in logs that version 0.1 wrote → their present names."""


def read_log(path: Path) -> Rows:
    """Read the lines of a training log that have an iteration.

    If a resumed run has repeated iterations, the later lines replace the earlier ones. Keys of
    version 0.1 get their present names.

    Raises:
        DataError: the log is missing, or damaged before its last line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no training log; pass run_folder=None for a page without curves")
    lines = path.read_bytes().decode(errors="replace").rstrip().split("\n")
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _with_present_keys(dict(json.loads(line or "{}")))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break  # the run was stopped while it wrote this line
            raise DataError(
                f"{path}, line {number}: expected a JSON object, got {line[:60]!r}"
            ) from error
        if "iteration" in row:
            while rows and rows[-1]["iteration"] > row["iteration"]:
                rows.pop()
            rows.append(row)
    return rows


def _with_present_keys(row: dict[str, Any]) -> dict[str, Any]:
    row = {_RENAMED_KEYS.get(key, key): value for key, value in row.items()}
    if isinstance(row.get("metrics"), dict):
        row["metrics"] = _with_present_keys(row["metrics"])
    return row


def _curve(rows: Rows, name: str) -> NDArray[np.float64]:
    """Return (2, n): iterations and finite values of the rows that have ``name``."""
    pairs = [(row["iteration"], row[name]) for row in rows if row.get(name) is not None]
    curve = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return curve[:, np.isfinite(curve[1])]


def _add_curves(report: Report, title: str, rows: Rows, labels: Mapping[str, str]) -> None:
    """Add a section with one plot per name in ``labels`` that occurs in the rows."""
    curves = {label: curve for key, label in labels.items() if (curve := _curve(rows, key)).size}
    if not curves:
        return
    report.section(title)
    seconds = _curve(rows, "seconds")
    if seconds.size:
        report.text(f"{seconds[0].max():.0f} iterations in {_duration(seconds[1].max())}.")
    for label, (x, y) in curves.items():
        # A long log has more entries than a plot has pixels, so the plot shows means.
        pieces = np.array_split(np.arange(x.size), min(x.size, _PLOTTED))
        at, mean = ([values[piece].mean() for piece in pieces] for values in (x, y))
        log_y = bool(y.min() > 0 and y.max() > 100 * y.min())
        figure = curve_figure({label: (at, mean)}, xlabel="iteration", ylabel=label, log_y=log_y)
        caption = f"{label}: {y[-1]:.4g} at iteration {x[-1]:.0f}."
        if x.size > _PLOTTED:
            low, high = ([limit(y[piece]) for piece in pieces] for limit in (np.min, np.max))
            figure.axes[0].fill_between(at, low, high, color=COLORS[0], alpha=0.2, lw=0)
            caption += f" Mean and range of every {x.size / _PLOTTED:.0f} log entries."
        report.figure(figure, caption, half=True)


def _add_log(report: Report, rows: Rows) -> None:
    """Add the curves of a training log: losses in one section, quality in another."""
    evaluated = [row for row in rows if "metrics" in row]
    quality = [{**row["metrics"], "iteration": row["iteration"]} for row in evaluated]
    names = {name: name for row in evaluated for name in row["metrics"]}
    _add_curves(report, "Training", rows, _FIELDS)
    _add_curves(report, "Quality during training", quality, names)


def _duration(seconds: float) -> str:
    """Return a duration as text, in units from microseconds to hours."""
    if seconds >= 60:
        hours, rest = divmod(round(seconds), 3600)
        minutes, rest = divmod(rest, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _even_indices(count: int, limit: int) -> list[int]:
    """Return up to ``limit`` evenly spaced indices below ``count``, the first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, limit))})


def _add_images(
    report: Report, samples: torch.Tensor, states: Sequence[torch.Tensor], labels: Sequence[str]
) -> None:
    """Add the grid of image samples, and the film strip and the animation of their chains."""
    cell = cell_scale(checked_images(samples, "samples")) * samples.shape[3] + GAP
    fitting = min(len(samples), max(1, _PAGE_WIDTH // cell))
    # Few samples fill complete rows if some number of columns allows it.
    complete = (c for c in range(fitting, fitting // 2, -1) if len(samples) % c == 0)
    columns = fitting if len(samples) > 6 * fitting else next(complete, fitting)
    shown = samples[: 6 * columns]
    caption = f"The first {len(shown)} of {len(samples)} samples."
    report.section("Samples")
    report.image(image_grid(shown, columns=columns), caption)
    if not states:
        return
    selected = _even_indices(len(states), max(2, _PAGE_WIDTH // cell))
    strip = film_strip([states[i][:6] for i in selected], labels=[labels[i] for i in selected])
    caption = "One chain per row, from noise on the left to the sample on the right."
    report.section("From noise to sample")
    report.image(strip, caption, half=strip.width <= _HALF_WIDTH)
    columns = max(1, _HALF_WIDTH // cell)
    chains = [states[i][: 6 * columns] for i in _even_indices(len(states), _FRAMES)]
    _add_film(report, [image_grid(state, columns=columns) for state in chains], len(chains[0]))


def _add_points(
    report: Report, samples: torch.Tensor, states: Sequence[torch.Tensor], labels: Sequence[str]
) -> None:
    """Add the plot of 2-D samples, and the animation and the row of plots of their chains."""
    figure = scatter_figure(samples, "")
    report.section("Samples")
    report.figure(figure, f"All {len(samples)} samples.", half=True)
    if not states:
        return
    clouds = [checked_points(state, f"trace_states[{i}]") for i, state in enumerate(states)]
    # The axes contain all samples but not the farthest noise, which would make the samples tiny.
    noise_limit = np.quantile(np.abs(np.concatenate(clouds)), 0.95)
    limit = 1.06 * float(max(noise_limit, np.abs(clouds[-1]).max())) or 1.0
    frames = [_point_frame(clouds[i], limit) for i in _even_indices(len(states), _FRAMES)]
    _add_film(report, frames, len(clouds[0]))
    selected = _even_indices(len(states), 8)
    row = scatter_row([clouds[i] for i in selected], [labels[i] for i in selected], 1.2, limit)
    report.figure(row, "From noise to samples; some of the noise lies outside the frames.")


def _add_film(report: Report, frames: Sequence[Image.Image], chains: int) -> None:
    # About three seconds in all; the last frame stays longer.
    times = [min(400, max(60, 3000 // len(frames)))] * (len(frames) - 1) + [1600]
    report.animation(frames, f"{chains} chains, from noise to samples.", times, half=True)


def _point_frame(cloud: Points, limit: float) -> Image.Image:
    """Return a frame of an animation of points within ±``limit``, on a transparent background."""
    side, size = 150, 3
    edges = np.linspace(-limit, limit, side + 1)
    counts = np.histogram2d(-cloud[:, 1], cloud[:, 0], bins=(edges, edges))[0]
    pixels = np.full((side, side, 4), (63, 127, 220, 0), dtype=np.uint8)
    pixels[..., 3] = 255 * (1 - 0.45**counts)
    return Image.fromarray(pixels.repeat(size, axis=0).repeat(size, axis=1))


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested settings under dotted names, with all digits of floats."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def versions() -> dict[str, str]:
    """Return the versions of the library, Python, PyTorch and NumPy, the system and the device.

    Examples:
        >>> from cdrl_fast.report import versions
        >>> "PyTorch" in versions()
        True
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "cdrl-fast": VERSION,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "NumPy": np.__version__,
        "System": platform.platform(),
        "Device": device,
        "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _add_table(report: Report, title: str, table: Table | None, header: tuple[str, str]) -> None:
    """Add a section with ``table``, if it has rows; ``header`` names the columns of a mapping."""
    if isinstance(table, Mapping):
        table = [dict(zip(header, pair, strict=True)) for pair in table.items()]
    if table:
        report.section(title)
        report.table(table)


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
    page: Report | None = None,
) -> Report:
    """Assemble the page about one model: samples, chains, curves, figures and settings.

    Args:
        run_folder: the folder of a training run with its ``log.jsonl``; None for no curves.
        samples: images (n, 1 or 3, height, width) in [-1, 1], or points (n, 2).
        trace_states: states of chains from noise to sample, each of the shape of ``samples``.
        trace_labels: a short name per state; by default "t = T" … "t = 0", one state per level.
        metrics, timings: name → value, timings in seconds; or rows as in ``Report.table``.
        config: settings, which may be nested.
        title, subtitle: the heading of the page.
        page: a page to continue, with ``title`` and ``subtitle`` as the heading of a new part;
            the caller then adds the table of versions.

    Returns:
        The page, for ``Report.write``; ``page`` itself if one is passed.

    Raises:
        TypeError, ValueError: wrong shapes or dtypes of samples or states, or NaN or infinity.
        DataError: ``run_folder`` has no log, or one damaged before its last line.
        ImportError: a figure is needed and matplotlib is not installed.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import training_report
        >>> samples = torch.zeros(4, 1, 8, 8)
        >>> report = training_report(None, samples=samples, metrics={"accuracy": 0.9})
        >>> report.write("report.html")  # doctest: +SKIP
    """
    count = len(trace_states)
    labels = trace_labels or [f"t = {count - 1 - i}" for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"trace_labels: expected {count}, got {len(labels)}")
    report = Report(title, subtitle) if page is None else page
    if page is not None:
        page.section(title)
        page.text(subtitle)
    add = _add_points if np.ndim(samples) == 2 else _add_images
    add(report, samples, trace_states, labels)
    if run_folder is not None:
        _add_log(report, read_log(Path(run_folder) / "log.jsonl"))
    if isinstance(timings, Mapping):
        timings = {k: _duration(float(t)) if isinstance(t, Real) else t for k, t in timings.items()}
    _add_table(report, "Metrics", metrics, ("Metric", "Value"))
    _add_table(report, "Timings", timings, ("Work", "Time"))
    _add_table(report, "Configuration", _flat(config or {}), ("Setting", "Value"))
    if page is None:
        _add_table(report, "Versions", versions(), ("Software", "Version"))
    return report
