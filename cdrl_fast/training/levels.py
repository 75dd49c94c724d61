"""Training batches of mixed levels: constants as tensors, and the noised pair (x_t, x_{t-1})."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import NoiseSchedule


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


@dataclass(frozen=True)
class NoiseTable:
    """What noises data, as tensors: at noise index t, or, from ``past`` on, of t → t - 1.

    Attributes:
        signal, spread: √ᾱ_t and √(1 - ᾱ_t), (T + 1,).
        past, clean, posterior: factors of x_t, x_0 and the noise in q(x_{t-1} | x_t, x_0), (T,).
    """

    signal: Tensor
    spread: Tensor
    past: Tensor
    clean: Tensor
    posterior: Tensor

    @classmethod
    def of(cls, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype) -> NoiseTable:
        signal, variance = np.sqrt(schedule.alpha_bar), schedule.noise_variance
        r = np.exp(np.diff(schedule.logsnr))  # exp(λ_t - λ_{t-1})
        grown = schedule.alpha_bar[:-1] / schedule.alpha_bar[1:]
        tables = (
            signal,
            np.sqrt(variance),
            r * np.sqrt(grown),
            (1 - r) * signal[:-1],
            np.sqrt(variance[:-1] / variance[1:] * (1.0 - 1.0 / grown)),
        )
        return cls(*(torch.tensor(table, device=device, dtype=dtype) for table in tables))


def noised_pair(
    table: NoiseTable, x0: Tensor, t: Tensor, noise: Tensor, posterior: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t and x_{t-1} of each sample.

    Args:
        table: in x0's dtype, on its device.
        x0: data (batch, …).
        t: levels, int64 (batch,).
        noise: standard normal, of x0's shape; x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) noise.
        posterior: None to make x_{t-1} with the same noise, which reduces the gradient's variance;
            or a second standard normal, to draw it from q(x_{t-1} | x_t, x_0).

    Returns:
        Two tensors of x0's shape and dtype.
    """

    def at(values: Tensor, index: Tensor) -> Tensor:
        return per_sample(values[index], x0)

    x_noisy = at(table.signal, t) * x0 + at(table.spread, t) * noise
    if posterior is None:
        return x_noisy, at(table.signal, t - 1) * x0 + at(table.spread, t - 1) * noise
    mean = at(table.past, t - 1) * x_noisy + at(table.clean, t - 1) * x0
    return x_noisy, mean + at(table.posterior, t - 1) * posterior


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) viewed so that it multiplies (batch, …)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
