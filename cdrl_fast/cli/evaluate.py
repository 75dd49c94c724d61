"""``cdrl-fast evaluate`` and ``tune``: how good samples are, and at what cost."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cdrl_fast.cli.options import device_of, load_split, one_plan
from cdrl_fast.data import Dataset
from cdrl_fast.environment import about
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.evaluation.sweep import Argument, sweep, sweep_figure, sweep_table
from cdrl_fast.evaluation.tuning import tune_steps
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
from cdrl_fast.report.model import model_page
from cdrl_fast.storage.folder import json_to_bytes, write_atomic


@dataclass(frozen=True)
class Evaluate:
    """Measure a model's samples against data."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    data: str = "digits"
    """What the model was trained on: digits, folder:PATH, …, as for train."""
    image_size: int | None = None
    """Images are resized to it, as for train; by default they keep their size."""
    held_out: float = 0.2
    """Share that training has not seen, as for train; images only."""
    samples: int = 1000
    """For each figure."""
    guidance: tuple[str, ...] = ()
    """Weights at which labels are asked for, 0 and 1 by default; 0,0.5,1 sweeps over them."""
    steps: tuple[str, ...] = ()
    """Langevin steps a level, as in sample; 15,8,5,tuned sweeps over plans (1/2/3 is one)."""
    seed: int = 0
    """Of the samples."""
    seeds: int = 1
    """Of a sweep: figures are means over seed, seed + 1, … with their standard deviation."""
    out: Path | None = None
    """Also write the figures there, as JSON."""
    page: Path | None = None
    """Also write figures, samples, and a run's curves, as one HTML page."""
    picture: Path | None = None
    """Of a sweep: its curve, .png or .svg; by default beside the JSON."""
    device: str = "auto"
    """A torch device; auto: a GPU where there is one."""

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(device_of(self.device))
        train, held_out = load_split(
            self.data, self.image_size, self.held_out if model.is_image else 0
        )
        swept, plans, weights = _asked(self.steps, self.guidance)
        if swept is not None:
            if self.page is not None:
                raise ValueError("evaluate: --page does not go with a sweep; --picture does")
            self._sweep(model, train, swept, plans, weights)
            return
        if self.seeds != 1 or self.picture is not None:
            raise ValueError("evaluate: --seeds and --picture belong to a sweep, as --steps 15,8,5")
        figures = evaluate(
            model,
            train,
            held_out,
            samples=self.samples,
            guidance=weights,
            steps=plans[0],
            seed=self.seed,
            progress=True,
        )
        for name, value in figures.items():
            print(f"{name:24s} {value:.6g}")
        if self.out is not None:
            found = {"command": _command("evaluate", self), **figures, "versions": about().versions}
            write_atomic(self.out, json_to_bytes(found))
        if self.page is not None:
            run = Path(self.model)
            page = model_page(
                model,
                title=f"{self.model} against {self.data}",
                run=run if run.is_dir() else None,
                metrics=figures,
                steps=plans[0],
            )
            page.write(self.page)

    def _sweep(
        self,
        model: CDRL,
        train: Dataset,
        argument: Argument,
        plans: tuple[Steps, ...],
        weights: tuple[float, ...],
    ) -> None:
        values, others = (plans, weights) if argument == "steps" else (weights, plans)
        if len(others) != 1:
            raise ValueError(
                f"evaluate: a sweep over {argument} takes one value of the other option, got "
                f"{len(others)}"
            )
        seeds = range(self.seed, self.seed + self.seeds)
        rows = sweep(
            model,
            train,
            argument,
            values,
            fixed=others[0],
            samples=self.samples,
            seeds=seeds,
            progress=True,
        )
        print(sweep_table(rows))
        if self.out is not None:
            found = {
                "command": _command("evaluate", self),
                "samples": self.samples,
                "seeds": list(seeds),
                "rows": rows,
                "versions": about().versions,
            }
            write_atomic(self.out, json_to_bytes(found))
        picture = self.picture or (self.out and self.out.with_suffix(".png"))
        if picture is not None:
            try:
                sweep_figure(rows).savefig(picture, dpi=110)
            except ImportError as error:
                print(f"no picture: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Tune:
    """Fit a step plan to a model: how many steps each level takes, and how long they are."""

    out: Path
    """Folder of the model with its plan, for --steps tuned."""
    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    data: str = "digits"
    """What the model was trained on: digits, folder:PATH, …, as for train."""
    image_size: int | None = None
    """Images are resized to it, as for train; by default they keep their size."""
    held_out: float = 0.2
    """Share that training has not seen, and the search does not see; images only."""
    budget: int = 30
    """Langevin steps of all levels together."""
    samples: int = 500
    """For each of two seeds that a plan is judged by."""
    guidance: float = 0.0
    """Weight of classifier-free guidance that the plan is for."""
    seed: int = 10_000
    """Of the samples; those of evaluate's seeds are others."""
    minutes: float = 10.0
    """The search stops then with the best plan so far."""
    device: str = "auto"
    """A torch device; auto: a GPU where there is one."""

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(device_of(self.device))
        train, _ = load_split(self.data, self.image_size, self.held_out if model.is_image else 0)
        model.step_plan = tune_steps(
            model,
            train,
            budget=self.budget,
            samples=self.samples,
            guidance=self.guidance,
            seed=self.seed,
            max_seconds=60 * self.minutes,
            progress=True,
        )
        model.save_pretrained(self.out)
        print(f"{self.out}: {model.step_plan}")


def _asked(
    steps: tuple[str, ...], guidance: tuple[str, ...]
) -> tuple[Argument | None, tuple[Steps, ...], tuple[float, ...]]:
    """The argument to sweep over (its values have commas), the plans, the weights."""
    lists: list[Argument] = []
    if any("," in word for word in steps):
        lists.append("steps")
        plans = tuple(one_plan((entry,)) for entry in ",".join(steps).split(","))
    else:
        plans = (one_plan(steps),)
    if any("," in word for word in guidance):
        lists.append("guidance")
    try:
        weights = tuple(float(entry) for word in guidance for entry in word.split(","))
    except ValueError:
        raise ValueError(f"guidance: expected numbers, got {' '.join(guidance)!r}") from None
    if len(lists) == 2:
        raise ValueError("evaluate: sweep over steps or over guidance, not over both at once")
    swept = lists[0] if lists else None
    return swept, plans, weights or ((0.0,) if swept else (0.0, 1.0))


def _command(name: str, options: Any) -> str:
    """The command line that gives these options, without those left at their defaults."""
    words = ["cdrl-fast", name]
    for entry in fields(options):
        value = getattr(options, entry.name)
        if value != entry.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{entry.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)
