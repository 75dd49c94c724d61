"""Mixtures of Gaussians as CDRL models, whose densities are known exactly at every noise level.

They test samplers and combinations of densities, because the expected samples can be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdrl_fast import CDRL, NoiseSchedule

SCHEDULE = NoiseSchedule(kappa=1e-3, step_scale="constant")


class GaussianMixture(nn.Module):
    """The energy of Σ_k p_k N(mean_k, std_k² I), diffused: f(y, λ) = s² log p_λ(y / m).

    Args:
        means: the means of the components, (K, dim).
        stds: the standard deviations, one per component.
        shares: the weights p_k, one per component; None: equal weights.
        schedule: the noise schedule that m and s of each λ come from.

    Shapes: y (batch, dim), logsnr (1,) or (batch,); returns (batch,).
    """

    means: Tensor
    stds: Tensor
    shares: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        stds: Sequence[float],
        shares: Sequence[float] | None = None,
        schedule: NoiseSchedule = SCHEDULE,
    ) -> None:
        super().__init__()
        shares = [1 / len(means)] * len(means) if shares is None else shares
        for name, values in (("means", means), ("stds", stds), ("shares", shares)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        levels = [schedule.level(t) for t in range(1, schedule.levels + 1)]
        rows = [[level.logsnr, level.scale, level.energy_variance] for level in levels]
        self.register_buffer("levels", torch.tensor(rows, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(()))  # tells dtype and device

    def log_density(self, x: Tensor, signal: Tensor | float = 1.0) -> Tensor:
        """Return log p of points (batch, dim) at a noise level; (batch,).

        ``signal`` is the share ᾱ of the variance that is left of the data.
        """
        signal = torch.as_tensor(signal, dtype=x.dtype).reshape(-1, 1)
        variance = signal * self.stds.to(x) ** 2 + 1.0 - signal
        centre = signal.sqrt()[:, :, None] * self.means.to(x)
        square = (x[:, None] - centre).square().sum(dim=2)
        parts = -0.5 * square / variance - 0.5 * x.shape[1] * torch.log(2 * torch.pi * variance)
        return torch.logsumexp(parts + self.shares.to(x).log(), dim=1)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        table: Any = self.levels
        nearest = (table[:, 0] - logsnr.double()[:, None]).abs().argmin(dim=1)
        _, scale, variance = table[nearest].to(y).unbind(dim=1)
        density = self.log_density(y / scale[:, None], torch.sigmoid(logsnr.to(y)))
        return variance * density

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw exact samples, float32 (n, dim)."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.means), size=n, p=self.shares.numpy())
        noise = rng.normal(size=(n, self.means.shape[1])) * self.stds.numpy()[chosen, None]
        return torch.from_numpy(self.means.numpy()[chosen] + noise).float()


def model_of(energy: GaussianMixture) -> CDRL:
    """Return the density as a model without initializer, which starts each level from x_t."""
    return CDRL(energy, None, SCHEDULE, sample_shape=(energy.means.shape[1],))
