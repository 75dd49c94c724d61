"""Quality against one argument of sampling: steps a level, or guidance."""

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
    "accuracy": "recognised as the class asked for",
    "inside": "inside the squares",
}
SPREAD = "_spread"


def network_evaluations(model: CDRL, steps: Steps = None, guidance: float = 0.0) -> int:
    """Forward passes of the initializer and gradients of the energy that one sample takes.

    One proposal a level, one gradient a Langevin step, one more to denoise an image; guidance asks
    the networks twice.
    """
    proposals = 0 if model.initializer is None else model.schedule.levels
    once = proposals + sum(model.plan(steps).counts) + int(model.is_image)
    return once if guidance == 0 else 2 * once


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
    """Measures samples at each value of one argument, every value with the same seeds.

    Args:
        data: what the model was trained on.
        argument: the one that varies.
        values: step plans, as `Sampler.sample` takes them, or guidance weights.
        fixed: the value of the other argument; None is its default.
        samples: how many samples a seed.
        seeds: figures are means over them.

    Returns:
        A row for each value: the value (of steps the plan, too), "evaluations" of networks a
        sample, and the figures of `Judge.figures`, each with its standard deviation over seeds as
        "NAME_spread" where there are two or more.

    Raises:
        ValueError: no value or no seed; and as `Sampler.sample`, before anything is drawn.
    """
    if not values or not seeds:
        raise ValueError("sweep: expected one or more values and seeds")
    settings = [_setting(argument, value, fixed) for value in values]
    costs = [network_evaluations(model, **setting) for setting in settings]
    sampler, judge = Sampler(model), Judge(data)
    rows = []
    for value, setting, cost in zip(values, settings, costs, strict=True):
        found = [
            measure(sampler, judge, samples, seed=seed, progress=progress, **setting)
            for seed in seeds
        ]
        row: Row = {argument: _name(value), "evaluations": cost}
        if argument == "steps":
            row["plan"] = model.plan(value).to_dict()
        for name in (name for name in found[0] if name != "seconds"):
            figures = [one[name] for one in found]
            row[name] = float(np.mean(figures))
            if len(seeds) > 1:
                row[name + SPREAD] = float(np.std(figures, ddof=1))
        rows.append(row)
    return rows


def sweep_table(rows: Sequence[Row]) -> str:
    """The rows as text: a column for the argument, the evaluations and each figure."""
    columns = [name for name in rows[0] if name != "plan" and not name.endswith(SPREAD)]
    cells = [columns, *([_cell(row, name) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Quality against network evaluations a sample, or against guidance; the tuned plan apart.

    Raises:
        ImportError: matplotlib is not installed.
    """
    argument = next(iter(rows[0]))
    x, xlabel = ("evaluations", "network evaluations a sample")
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


def _setting(argument: Argument, value: Any, fixed: Any) -> dict[str, Any]:
    if argument == "steps":
        return {"steps": value, "guidance": 0.0 if fixed is None else fixed}
    return {"guidance": value, "steps": fixed}


def _name(value: Any) -> Any:
    """As the command line takes it."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else value


def _cell(row: Row, name: str) -> str:
    value = row[name]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} ± {row[name + SPREAD]:.2g}" if name + SPREAD in row else text


def _curve(rows: Sequence[Row], x: str, y: str) -> Any:
    curve = [[row[name] for row in rows] for name in (x, y)]
    spread = [row[y + SPREAD] for row in rows if y + SPREAD in row]
    return (*curve, spread) if spread else tuple(curve)
