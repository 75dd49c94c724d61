"""How likely samples are, level by level: for telling what a model has not been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, Terms
from cdrl_fast.model import CDRL
from cdrl_fast.ops import normal
from cdrl_fast.ops.philox import Purpose


@dataclass(frozen=True)
class LevelStatistics:
    """What log-densities are usual at each level: `Sampler.level_statistics` of training data.

    Attributes:
        levels: t of each.
        mean, std: of the log-density, one a level.
    """

    levels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, levels: Sequence[int], densities: Tensor) -> LevelStatistics:
        """Those of log-densities (levels, n)."""
        exact = densities.double()
        mean, std = exact.mean(dim=1).tolist(), exact.std(dim=1).clamp_min(1e-12).tolist()
        return cls(tuple(levels), tuple(mean), tuple(std))

    def score(self, levels: Sequence[int], densities: Tensor) -> Tensor:
        """The mean over levels of (density - mean) / std: (levels, n) → (n,).

        Raises:
            ValueError: a level without statistics.
        """
        unknown = sorted(set(levels) - set(self.levels))
        if unknown:
            raise ValueError(f"statistics: none for level {unknown[0]}; they have {self.levels}")
        at = [self.levels.index(t) for t in levels]
        mean, std = (densities.new_tensor(v)[at, None] for v in (self.mean, self.std))
        return ((densities - mean) / std).mean(dim=0)


@torch.no_grad()
def level_densities(
    model: CDRL,
    frozen: FrozenModel,
    x0: Tensor,
    levels: Sequence[int],
    terms: Sequence[Terms],
    rng: tuple[int, int],
) -> Tensor:
    """f(m_t x_{t-1}, λ_{t-1}) / s_t² of clean samples at each level: (levels, n).

    x_{t-1} is √ᾱ_{t-1} x_0 + √(1 - ᾱ_{t-1}) ε with one ε a sample and level; at level 1 it is x_0.

    Args:
        model: tells the schedule.
        x0: (n, …), in the state's dtype, on the networks' device.
        rng: seed, and index of the first sample.
    """
    schedule, found = model.schedule, []
    for t in levels:
        level = schedule.level(t)
        x = x0
        if t > 1:
            noise = normal(
                tuple(x0.shape),
                seed=rng[0],
                draw=Purpose.SCORE.draw(t),
                first_sample=rng[1],
                device=x0.device,
                dtype=x0.dtype,
            )
            signal, variance = schedule.alpha_bar[t - 1], schedule.noise_variance[t - 1]
            x = float(signal) ** 0.5 * x0 + float(variance) ** 0.5 * noise
        value = frozen.at(level.logsnr, terms).value(level.scale * x)
        found.append(value / level.energy_variance)
    return torch.stack(found)


def checked_samples(where: str, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The samples, if they are what a model of that sample shape takes.

    Raises:
        ValueError: another shape, or images that are not scaled to [-1, 1].
        TypeError: not a floating-point tensor.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{where}: images must be a floating-point tensor, got {kind}; scale bytes by "
            "2 * x / 255 - 1"
        )
    if images.shape[1:] != shape:
        raise ValueError(
            f"{where}: expected (n, {', '.join(map(str, shape))}), got {tuple(images.shape)}"
        )
    if len(shape) == 3 and images.numel() and float(images.abs().max()) > 2.0:
        raise ValueError(
            f"{where}: expected images in [-1, 1], got {float(images.min()):.4g} to "
            f"{float(images.max()):.4g}"
        )
    return images
