"""``cdrl-fast evaluate`` and ``tune``: measure samples, fit step plans."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdrl_fast.cli.options import ModelCommand, load_split, parse_steps
from cdrl_fast.storage.folder import json_to_bytes, write_atomic

if TYPE_CHECKING:
    from cdrl_fast.data import Dataset
    from cdrl_fast.evaluation.sweep import Argument
    from cdrl_fast.model.cdrl import CDRL
    from cdrl_fast.model.schedule import Steps


@dataclass(frozen=True, kw_only=True)
class DataCommand(ModelCommand):
    """A command that compares a model's samples with data."""

    data: str = "digits"
    """The model's training data, as for train --data."""
    image_size: int | None = None
    """Side in pixels that images are resized to; by default they keep their size."""
    held_out: float = 0.2
    """Share of the images that the model was not trained on, as for train --held-out."""

    def load(self) -> tuple[CDRL, Dataset, Dataset | None]:
        """Return the model, on the device, its training data, and the held-out images."""
        model = self.load_model()
        held_out = self.held_out if model.is_image else 0
        return model, *load_split(self.data, self.image_size, held_out)


@dataclass(frozen=True, kw_only=True)
class Evaluate(DataCommand):
    """Measure how close samples are to data; sweep over steps or guidance."""

    samples: int = 1000
    """Samples per figure."""
    guidance: tuple[str, ...] = ()
    """Weights of classifier-free guidance, by default 0 and 1; 0,0.5,1 sweeps over them."""
    steps: tuple[str, ...] = ()
    """Langevin steps per level, as for sample; 15,8,1/2/3,tuned sweeps over four plans."""
    seed: int = 0
    """Seed of the samples."""
    seeds: int = 1
    """Seeds of a sweep, from --seed on; figures are means with standard deviations."""
    out: Path | None = None
    """JSON file for the figures."""
    page: Path | None = None
    """HTML file for figures, samples and the curves of a run."""
    picture: Path | None = None
    """Picture of a sweep's curve, .png or .svg; by default beside --out."""

    def run(self) -> None:
        """Print the figures; write them to files."""
        from cdrl_fast import about
        from cdrl_fast.evaluation.judge import evaluate
        from cdrl_fast.report.model import model_page

        model, train, held_out = self.load()
        swept, plans, weights = _parse_sweep(self.steps, self.guidance)
        if swept is not None:
            if self.page is not None:
                raise ValueError("page: a sweep has no page; pass --picture for its curve")
            self._sweep(model, train, swept, plans, weights)
            return
        if self.seeds != 1 or self.picture is not None:
            raise ValueError("seeds, picture: expected a sweep with them, such as --steps 15,8,5")
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
            content = {"command": _command(), **figures, "versions": about().versions}
            write_atomic(self.out, json_to_bytes(content))
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
        from cdrl_fast import about
        from cdrl_fast.evaluation.sweep import sweep, sweep_figure, sweep_table

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
            content = {
                "command": _command(),
                "samples": self.samples,
                "seeds": list(seeds),
                "rows": rows,
                "versions": about().versions,
            }
            write_atomic(self.out, json_to_bytes(content))
        picture = self.picture or (self.out and self.out.with_suffix(".png"))
        if picture is not None:
            try:
                sweep_figure(rows).savefig(picture, dpi=110)
            except ImportError as error:
                print(f"no picture: {error}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Tune(DataCommand):
    """Tune a model's step plan: the number and size of Langevin steps per level."""

    out: Path
    """Folder for the model with its plan, which --steps tuned uses."""
    held_out: float = 0.2
    """Share of the images that the model was not trained on; the search does not use it."""
    budget: int = 30
    """Langevin steps of all levels together."""
    samples: int = 500
    """Samples per plan and seed; plans are compared on two seeds."""
    guidance: float = 0.0
    """Weight of classifier-free guidance that the plan is tuned for."""
    seed: int = 10_000
    """First of the two seeds; evaluate with other seeds."""
    minutes: float = 10.0
    """Time limit of the search, which returns its best plan."""

    def run(self) -> None:
        """Tune the plan, save the model with it and print it."""
        from cdrl_fast import tune_steps

        model, train, _ = self.load()
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


def _parse_sweep(
    steps: tuple[str, ...], guidance: tuple[str, ...]
) -> tuple[Argument | None, tuple[Steps, ...], tuple[float, ...]]:
    """Return the argument to sweep over (the one with commas) or None, the plans, the weights."""
    swept: list[Argument] = []
    if any("," in option for option in steps):
        swept.append("steps")
        plans = tuple(parse_steps((entry,)) for entry in ",".join(steps).split(","))
    else:
        plans = (parse_steps(steps),)
    if any("," in option for option in guidance):
        swept.append("guidance")
    try:
        weights = tuple(float(entry) for option in guidance for entry in option.split(","))
    except ValueError:
        raise ValueError(f"guidance: expected numbers, got {' '.join(guidance)!r}") from None
    if len(swept) == 2:
        raise ValueError("evaluate: sweep over steps or over guidance, not over both at once")
    argument = swept[0] if swept else None
    return argument, plans, weights or ((0.0,) if argument else (0.0, 1.0))


def _command() -> str:
    """Return this process's command line."""
    return shlex.join(["cdrl-fast", *sys.argv[1:]])
