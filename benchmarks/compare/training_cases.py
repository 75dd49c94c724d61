"""Cases of `Trainer`: training from the start, and continuing a run folder of any version."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from library import Cases, Result, make_trainer, training_data

from cdrl_fast import CDRL, Trainer

RECIPES = ("digits", "checkerboard")
ITERATIONS = 30
VARIANTS = {
    "digits": {
        "fp32, flip, two parts": {"precision": "fp32", "flip": True, "accumulate": 2},
        "posterior noise, other seed": {"variance_reduction": False, "seed": 3},
        "dropout, recomputed blocks": {"recompute": "blocks", "model": {"dropout": 0.2}},
        "no initializer, no labels": {"model": {"initializer": False, "conditional": False}},
    },
    "checkerboard": {"fp64": {"dtype": torch.float64}},
}
"""Options of shorter runs, by recipe and case; see `make_trainer`."""


def training_cases() -> Cases:
    """Yield the cases that train from fresh weights."""
    for name in RECIPES:
        yield f"training, {name}", partial(trained, partial(make_trainer, name), ITERATIONS)
        for case, options in VARIANTS[name].items():
            make = partial(make_trainer, name, **options)
            yield f"training, {name}, {case}", partial(trained, make, 5)


def trained(make: Callable[[], Trainer], iterations: int, folder: Path | None = None) -> Result:
    """Train up to a number of iterations; return the weights and the averaged weights."""
    trainer = make()
    trainer.fit(iterations, folder=folder)
    return {"weights": trainer.model.state_dict(), "averaged weights": trainer.ema.state_dict()}


def make_runs(folder: Path) -> None:
    """Write a run folder of each recipe, stopped after half of the iterations."""
    for name in RECIPES:
        trained(partial(make_trainer, name), ITERATIONS // 2, folder / name)


def resume_cases(runs: Path) -> Cases:
    """Yield the cases that read or continue what `make_runs` has written."""

    def resumed(name: str) -> Result:
        with tempfile.TemporaryDirectory() as place:
            run = shutil.copytree(runs / name, Path(place) / name)
            make = partial(Trainer.resume, run, training_data(name))
            return trained(make, ITERATIONS, run)

    def loaded(name: str) -> Result:
        return {"weights": CDRL.from_pretrained(runs / name).state_dict()}

    for name in RECIPES:
        yield f"resume, {name}", partial(resumed, name)
        yield f"from_pretrained of a run folder, {name}", partial(loaded, name)
