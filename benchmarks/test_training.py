"""Benchmark of a training iteration: the reference, under autocast, and `Trainer`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from race import Race
from torch import nn

from cdrl_fast import TrainConfig, Trainer, reference
from cdrl_fast.data import Dataset
from cdrl_fast.precision import fast_bfloat16
from cdrl_fast.training.recipe import ModelOptions, Recipe, load_recipe

WIDTH_32 = ModelOptions(
    32, (1, 2, 2), 1,
    initializer_width=16, initializer_multipliers=(1, 2, 2), initializer_blocks=1, attention=(7,),
    dropout=0.0,
)  # fmt: skip
RECIPES = {
    "digits": (load_recipe("digits"), (1, 8, 8)),
    "width 32": (Recipe(model=WIDTH_32, training=TrainConfig(batch_size=64)), (1, 28, 28)),
    "paper": (Recipe(training=TrainConfig(flip=True)), (3, 32, 32)),
}
SIZES = [
    pytest.param("digits", id="digits"),
    pytest.param("width 32", id="width_32"),
    pytest.param("paper", id="paper", marks=pytest.mark.paper),
]
HALF = {"cpu": torch.bfloat16 if fast_bfloat16() else None, "cuda": torch.float16}
"""The half precision of the hand-tuned contender; None on CPUs that only emulate it."""
PRECISIONS = {
    "cpu": ("fp32", "bf16") if fast_bfloat16() else ("fp32",),
    "cuda": ("fp32", "tf32", "fp16"),
}
ROUNDED = 5e-2
"""The tolerance of losses in half precision or TF32; in bfloat16 the error is about 1e-2."""
NAMES = (
    "eager",
    "hand-tuned",
    *dict.fromkeys(f"ours, {p}" for ps in PRECISIONS.values() for p in ps),
    *(f"ours, {p}, no graph" for p in PRECISIONS["cuda"]),
)


def images(shape, classes=10):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (2000, *shape), dtype=np.uint8)
    return Dataset("random", values, rng.integers(1, classes + 1, 2000), tuple("abcdefghij"))


@cache
def build_race(name, device):
    recipe, shape = RECIPES[name]
    data = images(shape)
    model = recipe.model.build(data).to(device)
    contenders = {"eager": by_reference(copy.deepcopy(model), data, recipe)}
    half = HALF[device.type]
    if half is not None:
        contenders["hand-tuned"] = by_reference(copy.deepcopy(model), data, recipe, half=half)
        check_half(model, data, recipe, half)
    for precision in PRECISIONS[device.type]:
        config = replace(recipe.training, precision=precision)
        trainer = Trainer(copy.deepcopy(model), data, config)
        check(trainer, copy.deepcopy(model), recipe, 1e-2 if precision == "fp32" else ROUNDED)
        contenders[f"ours, {precision}"] = trainer.step
        if device.type == "cuda":
            without = replace(config, graph="off")
            plain = Trainer(copy.deepcopy(model), data, without)
            contenders[f"ours, {precision}, no graph"] = plain.step
    return Race(f"training, {name}", device, {"iterations": 1}, contenders)


def by_reference(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    half: torch.dtype | None = None,
    noise: str = "torch",
) -> Callable[[], dict[str, torch.Tensor]]:
    """Return an iteration in plain PyTorch, as a user would write it, or the same under autocast.

    Under autocast, power iterations and weights stay in float32.
    """
    config, device = recipe.training, next(model.parameters()).device
    energy = torch.optim.Adam(model.energy.parameters(), lr=config.energy_lr)
    initializer = torch.optim.AdamW(model.initializer.parameters(), lr=config.initializer_lr)
    x0, label = data.batch(np.arange(config.batch_size))
    x0, label = x0.to(device), label.to(device)

    def run() -> dict[str, torch.Tensor]:
        with torch.autocast(device.type, half, enabled=half is not None):
            return reference.training_iteration(
                model, x0, label, energy_optimizer=energy, initializer_optimizer=initializer,
                noise=noise,
            )  # fmt: skip

    return run


def check_half(model: nn.Module, data: Dataset, recipe: Recipe, half: torch.dtype) -> None:
    """Check the hand-tuned iteration's first losses against float32, with the same noise."""
    actual, expected = (
        by_reference(copy.deepcopy(model), data, recipe, half=kind, noise="stream")()
        for kind in (half, None)
    )
    for key, value in expected.items():
        assert float(actual[key]) == pytest.approx(float(value), rel=ROUNDED, abs=1e-3), key


def check(trainer: Trainer, model: nn.Module, recipe: Recipe, tolerance: float) -> None:
    """Check the losses of the trainer's first iteration against the reference."""
    config = recipe.training
    x0, label = trainer.batches.at(0)
    expected = reference.training_iteration(
        model, x0, label,
        energy_optimizer=torch.optim.Adam(model.energy.parameters(), lr=0.0),
        initializer_optimizer=torch.optim.AdamW(model.initializer.parameters(), lr=0.0),
        seed=config.seed, label_drop=0.0,
    )  # fmt: skip
    log = trainer.step()
    for key, value in expected.items():
        assert log[key] == pytest.approx(float(value), rel=tolerance, abs=1e-3), key


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_training(benchmark, name, size, device, rounds):
    race = build_race(size, device)
    if name not in race.contenders:
        pytest.skip(f"not timed on {device.type}")
    race.time(benchmark, name, rounds)
