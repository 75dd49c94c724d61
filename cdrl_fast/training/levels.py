"""The constants of batches of mixed levels, and the noised pair (x_t, x_{t-1}) of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.model.schedule import NoiseSchedule


@dataclass(frozen=True)
class LevelTable:
    """Constants of `NoiseSchedule.level` as tensors (T,), indexed by t - 1."""

    scale: Tensor
    logsnr: Tensor
    logsnr_noisy: Tensor
    init_std: Tensor
    pull: Tensor
    noise_std: Tensor
    loss_weight: Tensor

    @classmethod
    def from_schedule(
        cls, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype
    ) -> LevelTable:
        """Return the constants of all levels of a schedule."""
        levels = [schedule.level(t) for t in range(1, schedule.levels + 1)]
        return cls(
            **{
                name: torch.tensor([getattr(x, name) for x in levels], device=device, dtype=dtype)
                for name in cls.__dataclass_fields__
            }
        )

    def at(self, t: Tensor) -> LevelTable:
        """Return the constants per sample, (batch,) each, for levels t, int64 (batch,)."""
        return LevelTable(**{k: getattr(self, k)[t - 1] for k in self.__dataclass_fields__})


@dataclass(frozen=True)
class NoiseTable:
    """Coefficients of q(x_t | x_0) and q(x_{t-1} | x_t, x_0), as tensors.

    Attributes:
        signal, noise: √ᾱ_t and √(1 - ᾱ_t), (T + 1,), indexed by t.
        posterior_noisy, posterior_clean, posterior_std: factors of x_t, of x_0 and of the noise in
            a sample of q(x_{t-1} | x_t, x_0), (T,), indexed by t - 1.
    """

    signal: Tensor
    noise: Tensor
    posterior_noisy: Tensor
    posterior_clean: Tensor
    posterior_std: Tensor

    @classmethod
    def from_schedule(
        cls, schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype
    ) -> NoiseTable:
        """Return the coefficients of a schedule."""
        signal, variance = np.sqrt(schedule.alpha_bar), schedule.noise_variance
        r = np.exp(np.diff(schedule.logsnr))  # exp(λ_t - λ_{t-1})
        alpha_ratio = schedule.alpha_bar[:-1] / schedule.alpha_bar[1:]
        tables = (
            signal,
            np.sqrt(variance),
            r * np.sqrt(alpha_ratio),
            (1 - r) * signal[:-1],
            np.sqrt(variance[:-1] / variance[1:] * (1.0 - 1.0 / alpha_ratio)),
        )
        return cls(*(torch.tensor(table, device=device, dtype=dtype) for table in tables))


def noised_pair(
    table: NoiseTable, x0: Tensor, t: Tensor, noise: Tensor, posterior_noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw x_t and x_{t-1} of each sample.

    Args:
        table: coefficients in x0's dtype, on its device.
        x0: data (batch, …).
        t: levels, int64 (batch,).
        noise: standard normal, of x0's shape; x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) noise.
        posterior_noise: None for an x_{t-1} with the same noise, which reduces the variance of the
            gradient; or a second standard normal, for an x_{t-1} from q(x_{t-1} | x_t, x_0).

    Returns:
        Two tensors of x0's shape and dtype.
    """

    def at(values: Tensor, index: Tensor) -> Tensor:
        return per_sample(values[index], x0)

    x_noisy = at(table.signal, t) * x0 + at(table.noise, t) * noise
    if posterior_noise is None:
        return x_noisy, at(table.signal, t - 1) * x0 + at(table.noise, t - 1) * noise
    mean = at(table.posterior_noisy, t - 1) * x_noisy + at(table.posterior_clean, t - 1) * x0
    return x_noisy, mean + at(table.posterior_std, t - 1) * posterior_noise


def per_sample(values: Tensor, samples: Tensor) -> Tensor:
    """Return values (batch,) as a view that multiplies samples (batch, …)."""
    return values.reshape(-1, *[1] * (samples.dim() - 1))
