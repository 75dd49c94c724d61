"""Optimizers, learning rates, averaged weights, and the watch on gradient norms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import unsharded

WATCHED = ("energy_grad_norm", "initializer_grad_norm")
FACTOR = 1000.0
"""A norm that many times the usual one is an explosion; spikes of tenfold are usual."""
SETTLED = 100
"""Iterations before the usual is known."""
_MEMORY = 0.99


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
    with unsharded(model.energy, model.initializer):
        moved(list(average.parameters()), list(model.parameters()), iteration)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


class Monitor:
    """Knows what gradient norms are usual: an average of their logarithms.

    Attributes:
        state: per name the average of ln(norm), and how many iterations it has seen; JSON-ready.
    """

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        self.state = {name: (float(m), int(n)) for name, (m, n) in (state or {}).items()}

    def complaint(self, log: Mapping[str, float]) -> str | None:
        """Why an iteration's figures are not to be trusted; None where they are."""
        for name, value in log.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        for name in WATCHED:
            mean, seen = self.state.get(name, (0.0, 0))
            if name in log and seen >= SETTLED and _ln(log[name]) > mean + math.log(FACTOR):
                return f"{name} is {log[name]:.3g}, usually about {math.exp(mean):.3g}"
        return None

    def note(self, log: Mapping[str, float]) -> None:
        """Takes the figures of an iteration that was good."""
        for name in WATCHED:
            if name in log:
                mean, seen = self.state.get(name, (0.0, 0))
                # A plain average first, so that the beginning does not count for long.
                weight = max(1.0 / (seen + 1), 1.0 - _MEMORY)
                self.state[name] = (mean + weight * (_ln(log[name]) - mean), seen + 1)


def _ln(value: float) -> float:
    return math.log(max(value, 1e-30))
