"""Test whether `Trainer` trains as well as the reference in as many iterations, for several seeds.

    python benchmarks/quality/training_quality.py --out benchmarks/results/training-quality.json

A recipe is trained by `Trainer` and by plain PyTorch (`cdrl_fast.reference`, float32, with torch's
noise). Their iterations alternate, so that disturbances of the machine affect both. At regular
intervals both averaged models draw samples with labels that cycle through the classes; their
Fréchet distance to the training images is computed in the features of a classifier trained on
them. Passes (status 0) if the means of the last distances differ by at most a tenth of the held-out
baseline (the distance between training and held-out images), or if the 95 % interval of the
difference (Student's t, seeds paired) contains 0. Draws distance against training seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdrl_fast import CDRL, Sampler, TrainConfig, Trainer, reference
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.environment import about
from cdrl_fast.evaluation.judge import Judge, measure
from cdrl_fast.report import curve_figure
from cdrl_fast.training.batches import Batches
from cdrl_fast.training.recipe import Recipe, load_recipe

# Student's t at 97.5 %, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}


class ByReference:
    """Training in plain PyTorch: `reference.training_iteration` and averaged weights.

    Args:
        model: the model, trained in place.
        data: the data set, in the order of `Trainer`.
        config: the configuration, with the schedules of `Trainer`.
    """

    def __init__(self, model: CDRL, data: Dataset, config: TrainConfig) -> None:
        self.model, self.ema = model, copy.deepcopy(model).eval()
        self._data, self._config = data, config
        # The trainer's order of the data; the reference iteration drops labels itself.
        self._batches = Batches(
            data, config, labelled=False, device=torch.device("cpu"), dtype=torch.float32
        )
        self.iteration = 0
        self.energy = torch.optim.Adam(model.energy.parameters())
        assert model.initializer is not None
        self.initializer = torch.optim.AdamW(model.initializer.parameters(), weight_decay=0.0)

    def step(self) -> None:
        """Do one iteration."""
        n, config = self.iteration, self._config
        schedules = (
            (self.energy, config.energy_lr, n),
            (self.initializer, config.initializer_lr, n + config.initializer_warmup_offset),
        )
        for optimizer, rate, done in schedules:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, done / config.warmup)
        x0, label = self._data.batch(self._batches.indices(n))
        reference.training_iteration(
            self.model, x0, label,
            energy_optimizer=self.energy, initializer_optimizer=self.initializer,
            variance_reduction=config.variance_reduction, label_drop=config.label_drop,
            clip=config.clip, noise="torch",
        )  # fmt: skip
        self.iteration += 1
        n = self.iteration
        decay = min(config.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            now = dict(self.model.named_parameters())
            for name, mean in self.ema.named_parameters():
                mean.lerp_(now[name], 1.0 - decay)
            for mean, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                mean.copy_(buffer)


@dataclass
class Contender:
    """One way to train, and its training seconds so far."""

    name: str
    start: Callable[[CDRL, Dataset, TrainConfig], Any]
    seconds: float = 0.0


def train_both(
    recipe: Recipe, train: Dataset, judge: Judge, seed: int, every: int, samples: int
) -> dict[str, list[dict[str, float]]]:
    """Return both contenders' distances by iteration and training seconds, for one seed."""
    config = replace(recipe.training, seed=seed)
    contenders = [Contender("reference", ByReference), Contender("cdrl_fast", Trainer)]
    torch.manual_seed(seed)  # for the reference's noise
    runs = [c.start(recipe.model.build(train, seed), train, config) for c in contenders]
    rows: dict[str, list[dict[str, float]]] = {c.name: [] for c in contenders}
    for iteration in range(1, recipe.iterations + 1):
        for contender, run in zip(contenders, runs, strict=True):
            begun = time.perf_counter()
            run.step()
            contender.seconds += time.perf_counter() - begun
            if iteration % every == 0:
                sampler = Sampler(run.ema, precision="fp32")
                row = measure(sampler, judge, samples, seed=1000)
                row |= {"iteration": iteration, "seconds": contender.seconds}
                rows[contender.name].append(row)
                print(f"seed {seed}, {contender.name}: {row}", flush=True)
    return rows


def compare(runs: list[dict[str, list[dict[str, float]]]], held_out: float) -> dict[str, Any]:
    """Return the difference of the last distances, ours less the reference's, over seeds."""
    last = {
        name: np.array([rows[name][-1]["frechet"] for rows in runs])
        for name in ("reference", "cdrl_fast")
    }
    difference = last["cdrl_fast"] - last["reference"]
    n = len(difference)
    width = float("inf")
    if n > 1:
        width = STUDENT[n - 1] * float(difference.std(ddof=1)) / n**0.5
    mean = float(difference.mean())
    return {
        "frechet": {name: values.tolist() for name, values in last.items()},
        "difference": mean,
        "interval": [mean - width, mean + width],
        "train_against_held_out": held_out,
        "passed": abs(mean) <= 0.1 * held_out or mean - width <= 0.0 <= mean + width,
    }


def draw(runs: list[dict[str, list[dict[str, float]]]], path: Path) -> None:
    """Draw mean distance over seeds against training seconds."""
    series = {}
    for name in ("reference", "cdrl_fast"):
        table = [[(r["seconds"], r["frechet"]) for r in rows[name]] for rows in runs]
        x, y = np.moveaxis(np.array(table), -1, 0)
        series[name] = (x.mean(axis=0), y.mean(axis=0), y.std(axis=0))
    figure = curve_figure(
        series, xlabel="seconds of training", ylabel="Fréchet distance", log_y=True
    )
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if `Trainer` is worse than the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--every", type=int, default=200, help="iterations between distances")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/training-quality.json"))
    options = parser.parse_args(arguments)
    recipe = replace(load_recipe(options.recipe), iterations=options.iterations)
    train, held_out = load_data(recipe.data).split(recipe.held_out or 0.2)
    judge = Judge(train)
    baseline = judge.distance(held_out.batch(np.arange(len(held_out)))[0])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, list[dict[str, float]]]] = []
    for seed in range(options.seeds):
        runs.append(train_both(recipe, train, judge, seed, options.every, options.samples))
        report = compare(runs, baseline) | {"iterations": options.iterations, "runs": runs}
        report |= {"samples": options.samples, "versions": about().versions}
        report["command"] = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        draw(runs, options.out.with_suffix(".png"))
    print({k: report[k] for k in ("difference", "interval", "train_against_held_out", "passed")})
    return int(not report["passed"])


if __name__ == "__main__":
    sys.exit(main())
