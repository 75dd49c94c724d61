"""A training iteration: the reference, the reference under autocast, and `Trainer`."""

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
"""None where half precision is slower: on CPUs that do not multiply it."""
PRECISIONS = {
    "cpu": ("fp32", "bf16") if fast_bfloat16() else ("fp32",),
    "cuda": ("fp32", "tf32", "fp16"),
}
ROUNDED = 5e-2
"""How far a loss may be from float32's where products are rounded; about 1e-2 in bfloat16."""
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
def race(name, device):
    recipe, shape = RECIPES[name]
    data = images(shape)
    model = recipe.model.build(data).to(device)
    found = {"eager": by_reference(copy.deepcopy(model), data, recipe)}
    half = HALF[device.type]
    if half is not None:
        found["hand-tuned"] = by_reference(copy.deepcopy(model), data, recipe, half=half)
        check_half(model, data, recipe, half)
    for precision in PRECISIONS[device.type]:
        config = replace(recipe.training, precision=precision)
        trainer = Trainer(copy.deepcopy(model), data, config)
        check(trainer, copy.deepcopy(model), recipe, 1e-2 if precision == "fp32" else ROUNDED)
        found[f"ours, {precision}"] = trainer.step
        if device.type == "cuda":
            without = replace(config, graph="off")
            plain = Trainer(copy.deepcopy(model), data, without)
            found[f"ours, {precision}, no graph"] = plain.step
    return Race(f"training, {name}", device, {"iterations": 1}, found)


def by_reference(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    half: torch.dtype | None = None,
    noise: str = "torch",
) -> Callable[[], dict[str, torch.Tensor]]:
    """Plain PyTorch, its noise by torch, as a user would write it; or all of it in half precision.

    Power iterations and weights stay in float32.
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
    """The hand-tuned iteration's first losses are float32's, from the same noise."""
    got, wanted = (
        by_reference(copy.deepcopy(model), data, recipe, half=kind, noise="stream")()
        for kind in (half, None)
    )
    for key, value in wanted.items():
        assert float(got[key]) == pytest.approx(float(value), rel=ROUNDED, abs=1e-3), key


def check(trainer: Trainer, model: nn.Module, recipe: Recipe, tolerance: float) -> None:
    """The first iteration's losses are the reference's."""
    config = recipe.training
    x0, label = trainer.batches.at(0)
    wanted = reference.training_iteration(
        model, x0, label,
        energy_optimizer=torch.optim.Adam(model.energy.parameters(), lr=0.0),
        initializer_optimizer=torch.optim.AdamW(model.initializer.parameters(), lr=0.0),
        seed=config.seed, label_drop=0.0,
    )  # fmt: skip
    log = trainer.step()
    for key, value in wanted.items():
        assert log[key] == pytest.approx(float(value), rel=tolerance, abs=1e-3), key


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_training(benchmark, name, size, device, rounds):
    made = race(size, device)
    if name not in made.contenders:
        pytest.skip(f"not one of {device.type}s")
    made.time(benchmark, name, rounds)
