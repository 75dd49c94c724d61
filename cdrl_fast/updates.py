"""How an iteration's gradients change the weights, and the average of them."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cdrl_fast.model import CDRL
from cdrl_fast.processes import whole
from cdrl_fast.train_config import TrainConfig


def optimizers(model: CDRL) -> tuple[torch.optim.Adam, torch.optim.AdamW | None]:
    """The energy's Adam and the initializer's AdamW without decay, at rate 0 until told."""
    energy = torch.optim.Adam(model.energy.parameters(), lr=0.0, betas=(0.9, 0.999), fused=True)
    if model.initializer is None:
        return energy, None
    weights = model.initializer.parameters()
    return energy, torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0, fused=True)


def learning_rates(config: TrainConfig, iteration: int, rollbacks: int) -> dict[str, float]:
    """Of "energy" and "initializer": warmed up, and halved by each roll-back."""

    def warmed(rate: float, ahead: int) -> float:
        warmup = config.warmup
        return rate * (1.0 if warmup == 0 else min(1.0, (iteration + ahead) / warmup))

    found = {
        "energy": warmed(config.energy_lr, 0),
        "initializer": warmed(config.initializer_lr, config.initializer_warmup_offset),
    }
    return {name: rate * 0.5**rollbacks for name, rate in found.items()}


@torch.no_grad()
def average_(average: CDRL, model: CDRL, iteration: int, decay: float) -> None:
    """θ' ← d θ' + (1 - d) θ with d = min(decay, (1 + n)/(10 + n)); buffers are copied."""
    ramped = min(decay, (1 + iteration) / (10 + iteration))
    moved = get_ema_multi_avg_fn(ramped)  # type: ignore[no-untyped-call]
    with whole(model.energy, model.initializer):
        moved(list(average.parameters()), list(model.parameters()), iteration)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
