"""Optimizers, learning rates, averaged weights, and the monitor of gradient norms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import unsharded

GRAD_NORMS = ("energy_grad_norm", "initializer_grad_norm")
EXPLOSION = 1000.0
"""A gradient explodes if its norm is this many times the usual one; ten times is normal."""
MIN_HISTORY = 100
"""Good iterations after which the usual norm counts as known."""
_DECAY = 0.99


def optimizers(model: CDRL) -> tuple[torch.optim.Adam, torch.optim.AdamW | None]:
    """Return the energy's Adam and the initializer's AdamW without decay, with learning rate 0.

    `learning_rates` gives their learning rates for each iteration.
    """
    energy = torch.optim.Adam(model.energy.parameters(), lr=0.0, betas=(0.9, 0.999), fused=True)
    if model.initializer is None:
        return energy, None
    weights = model.initializer.parameters()
    return energy, torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0, fused=True)


def learning_rates(config: TrainConfig, iteration: int, rollbacks: int) -> dict[str, float]:
    """Return the learning rates of "energy" and "initializer" after warm-up and roll-backs."""

    def warmed(rate: float, offset: int) -> float:
        warmup = config.warmup
        return rate * (1.0 if warmup == 0 else min(1.0, (iteration + offset) / warmup))

    rates = {
        "energy": warmed(config.energy_lr, 0),
        "initializer": warmed(config.initializer_lr, config.initializer_warmup_offset),
    }
    return {name: rate * 0.5**rollbacks for name, rate in rates.items()}


@torch.no_grad()
def update_ema(ema: CDRL, model: CDRL, iteration: int, decay: float) -> None:
    """Update the averaged model in place.

    Parameters: θ' ← d θ' + (1 - d) θ with d = min(decay, (1 + n)/(10 + n)); buffers are copied.

    Args:
        ema: the averaged model, with parameters θ'.
        model: the trained model, with parameters θ.
        iteration: updates done, n.
        decay: limit of d.
    """
    ramped = min(decay, (1 + iteration) / (10 + iteration))
    update = get_ema_multi_avg_fn(ramped)  # type: ignore[no-untyped-call]
    with unsharded(model.energy, model.initializer):
        update(list(ema.parameters()), list(model.parameters()), iteration)
    for old, new in zip(ema.buffers(), model.buffers(), strict=True):
        old.copy_(new)


class Monitor:
    """A detector of non-finite values and exploding gradients.

    The usual gradient norm is the exponential of an average of logarithms.

    Attributes:
        state: for each norm the average of ln(norm) and the number of iterations in it; JSON-ready.
    """

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        self.state = {name: (float(m), int(n)) for name, (m, n) in (state or {}).items()}

    def anomaly(self, log: Mapping[str, float]) -> str | None:
        """Return what is wrong with an iteration's losses and norms, or None if nothing is."""
        for name, value in log.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        for name in GRAD_NORMS:
            mean, count = self.state.get(name, (0.0, 0))
            if name in log and count >= MIN_HISTORY and _ln(log[name]) > mean + math.log(EXPLOSION):
                return f"{name} is {log[name]:.3g}, usually about {math.exp(mean):.3g}"
        return None

    def update(self, log: Mapping[str, float]) -> None:
        """Add the gradient norms of a good iteration to the averages."""
        for name in GRAD_NORMS:
            if name in log:
                mean, count = self.state.get(name, (0.0, 0))
                # A plain mean first, so that the first iterations are soon outweighed.
                weight = max(1.0 / (count + 1), 1.0 - _DECAY)
                self.state[name] = (mean + weight * (_ln(log[name]) - mean), count + 1)


def _ln(value: float) -> float:
    return math.log(max(value, 1e-30))
