"""Training batches of mixed levels: constants as tensors, and the noised pair (x_t, x_{t-1})."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.model import CDRL
from cdrl_fast.schedule import NoiseSchedule


@dataclass(frozen=True)
class LevelTable:
    """The schedule's constants as tensors indexed by t - 1, for batches of mixed levels."""

    scale: Tensor
    logsnr: Tensor
    logsnr_noisy: Tensor
    init_std: Tensor
    pull: Tensor
    noise_std: Tensor
    loss_weight: Tensor

    @classmethod
    def of(cls, model: CDRL, device: torch.device, dtype: torch.dtype) -> LevelTable:
        levels = [model.schedule.level(t) for t in range(1, model.schedule.levels + 1)]
        return cls(
            **{
                name: torch.tensor([getattr(x, name) for x in levels], device=device, dtype=dtype)
                for name in cls.__dataclass_fields__
            }
        )

    def at(self, t: Tensor) -> LevelTable:
        """One entry a sample; t int64 (batch,)."""
        return LevelTable(**{k: getattr(self, k)[t - 1] for k in self.__dataclass_fields__})


def noised_pair(
    schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor, posterior: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t and x_{t-1} of each sample.

    Args:
        x0: data (batch, …).
        t: levels, int64 (batch,).
        noise: standard normal, of x0's shape; x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) noise.
        posterior: None to make x_{t-1} with the same noise, which reduces the gradient's variance;
            or a second standard normal, to draw it from q(x_{t-1} | x_t, x_0).

    Returns:
        Two tensors of x0's shape and dtype.
    """

    def at(values: Any, index: Tensor) -> Tensor:
        return per_sample(torch.as_tensor(np.array(values)).to(x0)[index], x0)

    signal, variance = np.sqrt(schedule.alpha_bar), schedule.noise_variance
    x_noisy = at(signal, t) * x0 + at(np.sqrt(variance), t) * noise
    if posterior is None:
        return x_noisy, at(signal, t - 1) * x0 + at(np.sqrt(variance), t - 1) * noise
    # Entry t - 1 of these tables belongs to the transition t → t - 1; r = exp(λ_t - λ_{t-1}).
    r = np.exp(np.diff(schedule.logsnr))
    grown = schedule.alpha_bar[:-1] / schedule.alpha_bar[1:]
    spread = variance[:-1] / variance[1:] * (1.0 - 1.0 / grown)
    mean = at(r * np.sqrt(grown), t - 1) * x_noisy + at((1 - r) * signal[:-1], t - 1) * x0
    return x_noisy, mean + at(np.sqrt(spread), t - 1) * posterior


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) viewed so that it multiplies (batch, …)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
