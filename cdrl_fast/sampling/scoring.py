"""Log-densities of samples per level, which show data unlike a model's training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdrl_fast.errors import check_integer
from cdrl_fast.ops.keys import ChainKeys
from cdrl_fast.sampling.label_terms import label_terms
from cdrl_fast.sampling.request import SampleOptions, SampleRequest

if TYPE_CHECKING:
    from cdrl_fast.sampling.sampler import Sampler


@dataclass(frozen=True)
class LevelStatistics:
    """Mean and standard deviation of log-densities per level, see `Sampler.level_statistics`.

    Attributes:
        levels: the levels t.
        mean, std: mean and standard deviation of the log-density at each of these levels.
    """

    levels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_densities(cls, levels: Sequence[int], densities: Tensor) -> LevelStatistics:
        """Return the statistics of log-densities (levels, n)."""
        densities = densities.double()
        mean, std = densities.mean(dim=1).tolist(), densities.std(dim=1).clamp_min(1e-12).tolist()
        return cls(tuple(levels), tuple(mean), tuple(std))

    def score(self, levels: Sequence[int], densities: Tensor) -> Tensor:
        """Return the standardised log-density, (density - mean) / std averaged over levels.

        Args:
            levels: the levels t of the rows of ``densities``.
            densities: log-densities (levels, n).

        Returns:
            Scores (n,).

        Raises:
            ValueError: a level without statistics.
        """
        unknown = sorted(set(levels) - set(self.levels))
        if unknown:
            raise ValueError(
                f"statistics: none for level {unknown[0]}, only for levels {self.levels}; compute "
                "them for all levels by Sampler.level_statistics"
            )
        indices = [self.levels.index(t) for t in levels]
        mean, std = (densities.new_tensor(v)[indices, None] for v in (self.mean, self.std))
        return ((densities - mean) / std).mean(dim=0)


def checked_samples(where: str, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the samples unchanged if a model of this sample shape can take them.

    Args:
        where: the function that error messages name.
        images: the samples (n, …).
        shape: shape of one sample.

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


def level_densities(
    sampler: Sampler, images: Tensor, levels: Sequence[int], options: SampleOptions
) -> Tensor:
    """Return the log-densities f(m_t x_{t-1}, λ_{t-1}) / s_t² of clean samples at each level.

    x_{t-1} is √ᾱ_{t-1} x_0 + √(1 - ᾱ_{t-1}) ε with one ε per sample and level; at level 1 it is
    x_0.

    Args:
        sampler: has the networks.
        images: x_0 (n, …).
        levels: the levels t.
        options: label, seed, first_sample and batch_size.

    Returns:
        (levels, n), each level up to a constant.

    Raises:
        ValueError, TypeError: a wrong value or type.
    """
    schedule, networks = sampler.model.schedule, sampler.networks
    images = checked_samples("log_density", images, sampler.model.sample_shape)
    if not bool(images.isfinite().all()):
        raise ValueError("log_density: images must be finite, got NaN or infinity")
    if not levels:
        raise ValueError("log_density: levels: expected at least one level, got none")
    for t in levels:
        check_integer("log_density", "level", t, 1, schedule.levels + 1)
    request = SampleRequest.of("log_density", len(images), options)
    terms = label_terms(sampler.source, request, sampler.device)
    batches = []
    with networks.in_use():
        for rows in request.batches():
            keys = ChainKeys(request.seed, request.first_sample + rows.start, schedule.levels)
            x0 = images[rows.start : rows.stop].to(networks.device, networks.dtype)
            batch_terms = [network_terms.slice(rows.start, rows.stop) for network_terms in terms]
            densities = []
            for t in levels:
                level, x = schedule.level(t), x0
                if t > 1:
                    noise = keys.density(t).normal(x0.shape, **networks.noise)
                    x = schedule.add_noise(x0, noise, t - 1)
                value = networks.at(level.logsnr, batch_terms).value(level.scale * x)
                densities.append(value / level.energy_variance)
            batches.append(torch.stack(densities))
    return torch.cat(batches, dim=1)
