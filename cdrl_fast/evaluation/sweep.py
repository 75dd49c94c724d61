"""Sweeps: quality of samples against Langevin steps per level, or against guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cdrl_fast.data import Dataset
from cdrl_fast.evaluation.judge import Judge, measure
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
from cdrl_fast.report import curve_row
from cdrl_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Argument = Literal["steps", "guidance"]
Row = dict[str, Any]

PANELS = {
    "frechet": "Fréchet distance",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "accuracy": "recognised as the requested class",
    "inside": "inside the squares",
}
SPREAD = "_spread"


def network_evaluations(model: CDRL, steps: Steps = None, guidance: float = 0.0) -> int:
    """Return the initializer's forward passes plus the energy's gradients per sample.

    There is one proposal per level, one gradient per Langevin step and, for images, one gradient
    to denoise; guidance doubles the sum.
    """
    proposals = 0 if model.initializer is None else model.schedule.levels
    unguided = proposals + sum(model.plan(steps).counts) + int(model.is_image)
    return unguided if guidance == 0 else 2 * unguided


def sweep(
    model: CDRL,
    data: Dataset,
    argument: Argument,
    values: Sequence[Any],
    *,
    fixed: Any = None,
    samples: int = 1000,
    seeds: Sequence[int] = (0,),
    progress: bool = False,
) -> list[Row]:
    """Measure samples at several values of one argument, with the same seeds for all values.

    Args:
        model: a trained model.
        data: the model's training data.
        argument: the argument that varies.
        values: its values: guidance weights, or step plans as `Sampler.sample` takes them.
        fixed: the value of the other argument; None is its default.
        samples: number of samples per seed.
        seeds: the seeds that figures are averaged over.
        progress: show progress bars.

    Returns:
        One row per value: the value (for steps also the plan), "evaluations" of networks per
        sample, and the figures of `Judge.figures`. With two seeds or more, "NAME_spread" is the
        standard deviation of figure NAME over the seeds.

    Raises:
        ValueError: no value or no seed; and as `Sampler.sample`, before any sample is drawn.
    """
    if not values or not seeds:
        raise ValueError(
            f"values, seeds: expected one or more of each, got {len(values)} and {len(seeds)}"
        )
    settings = [_sampling_options(argument, value, fixed) for value in values]
    costs = [network_evaluations(model, **setting) for setting in settings]
    sampler, judge = Sampler(model), Judge(data)
    rows = []
    for value, setting, cost in zip(values, settings, costs, strict=True):
        figures = [
            measure(sampler, judge, samples, seed=seed, progress=progress, **setting)
            for seed in seeds
        ]
        row: Row = {argument: _option_text(value), "evaluations": cost}
        if argument == "steps":
            row["plan"] = model.plan(value).to_dict()
        for name in (name for name in figures[0] if name != "seconds"):
            by_seed = [seed_figures[name] for seed_figures in figures]
            row[name] = float(np.mean(by_seed))
            if len(seeds) > 1:
                row[name + SPREAD] = float(np.std(by_seed, ddof=1))
        rows.append(row)
    return rows


def sweep_table(rows: Sequence[Row]) -> str:
    """Return rows as text, with columns for the argument, the evaluations and each figure."""
    columns = [name for name in rows[0] if name != "plan" and not name.endswith(SPREAD)]
    cells = [columns, *([_cell(row, name) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Plot quality against network evaluations per sample, or against guidance.

    A tuned plan is a series of its own.

    Raises:
        ImportError: matplotlib is not installed.
    """
    argument = next(iter(rows[0]))
    x, xlabel = ("evaluations", "network evaluations per sample")
    groups = {"h² = K/K'": [row for row in rows if row[argument] != "tuned"]}
    if argument == "guidance":
        x, xlabel = "guidance", "guidance"
    elif len(groups["h² = K/K'"]) < len(rows):
        groups["tuned"] = [row for row in rows if row[argument] == "tuned"]
    panels = {
        label: {name: _curve(group, x, figure) for name, group in groups.items() if group}
        for figure, label in PANELS.items()
        if figure in rows[0]
    }
    return curve_row(panels, xlabel=xlabel)


def _sampling_options(argument: Argument, value: Any, fixed: Any) -> dict[str, Any]:
    if argument == "steps":
        return {"steps": value, "guidance": 0.0 if fixed is None else fixed}
    return {"guidance": value, "steps": fixed}


def _option_text(value: Any) -> Any:
    """Return a value as the command line takes it."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else value


def _cell(row: Row, name: str) -> str:
    value = row[name]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} ± {row[name + SPREAD]:.2g}" if name + SPREAD in row else text


def _curve(rows: Sequence[Row], x: str, y: str) -> Any:
    curve = [[row[name] for row in rows] for name in (x, y)]
    spread = [row[y + SPREAD] for row in rows if y + SPREAD in row]
    return (*curve, spread) if spread else tuple(curve)
