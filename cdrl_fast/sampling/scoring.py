"""Log-densities of samples per level, which show data unlike a model's training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, Terms
from cdrl_fast.errors import check_integer
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.ops import normal
from cdrl_fast.ops.philox import Purpose, check_stream_position
from cdrl_fast.sampling.label_terms import label_terms


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


@torch.no_grad()
def level_densities(
    model: CDRL,
    frozen: FrozenModel,
    x0: Tensor,
    levels: Sequence[int],
    terms: Sequence[Terms],
    rng: tuple[int, int],
) -> Tensor:
    """Return the log-densities f(m_t x_{t-1}, λ_{t-1}) / s_t² of clean samples at each level.

    x_{t-1} is √ᾱ_{t-1} x_0 + √(1 - ᾱ_{t-1}) ε with one ε per sample and level; at level 1 it is
    x_0.

    Args:
        model: the model that defines the schedule.
        frozen: the networks.
        x0: (n, …), in the state's dtype, on the networks' device.
        levels: the levels t.
        terms: terms of each network.
        rng: seed and index of the first sample.

    Returns:
        (levels, n), each level up to a constant.
    """
    schedule, densities = model.schedule, []
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
            x = schedule.add_noise(x0, noise, t - 1)
        value = frozen.at(level.logsnr, terms).value(level.scale * x)
        densities.append(value / level.energy_variance)
    return torch.stack(densities)


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


class Scoring:
    """The part of `Sampler` that computes log-densities of samples."""

    model: CDRL
    source: CDRL | Density
    device: torch.device
    dtype: torch.dtype
    _frozen: FrozenModel

    def log_density(
        self,
        images: Tensor,
        *,
        label: Label = None,
        levels: Sequence[int] = (1,),
        statistics: LevelStatistics | None = None,
        seed: int = 0,
        first_sample: int = 0,
        batch_size: int = 1024,
    ) -> Tensor:
        """Return the log-density of samples, up to a constant per level.

        At level 1 it is that of the images themselves, f(m_1 x, λ_0) / s_1². At level t it is
        f(m_t x_{t-1}, λ_{t-1}) / s_t² of x_{t-1} = √ᾱ_{t-1} x + √(1 - ᾱ_{t-1}) ε, with ε from the
        noise stream. Data unlike the training data have low log-densities.

        Args:
            images: float (n, C, H, W) in [-1, 1], or points (n, dim).
            label: the class of log p(·|label), as in `sample`; None: no class.
            levels: levels t from 1 to T.
            statistics: from `level_statistics`, needed for several levels, because log-densities of
                different levels have different standard deviations. With it the method returns
                (log-density - mean) / std, averaged over levels.
            seed, first_sample: seed and index of the first sample of the noise ε.
            batch_size: number of samples that pass through the networks together. It changes the
                memory, not the log-densities.

        Returns:
            Log-densities or, with ``statistics``, standardised ones: (n,) float32, float64 with
            precision="fp64", on the sampler's device.

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.

        Source: Zhu, Xie, Wu, Gao, ICLR 2024, section 4 (level 1).

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> from cdrl_fast.data import load_data
            >>> images, _ = load_data("digits").batch(range(4))
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> bool((sampler.log_density(images) > sampler.log_density(-images)).all())
            True
        """
        if len(levels) != 1 and statistics is None:
            raise ValueError(
                "log_density: several levels need statistics=, which Sampler.level_statistics "
                f"computes from training data; got levels={tuple(levels)}"
            )
        densities = self._densities(images, label, levels, (seed, first_sample), batch_size)
        return densities[0] if statistics is None else statistics.score(levels, densities)

    def level_statistics(
        self,
        images: Tensor,
        *,
        label: Label = None,
        levels: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> LevelStatistics:
        """Return mean and standard deviation of the log-density of samples at each level.

        Args:
            images: at least two samples, such as the training data or a part of it.
            levels: levels t from 1 to T; None: all.
            label, seed, batch_size: as in `log_density`.

        Returns:
            `LevelStatistics`, for ``log_density(statistics=…)``.

        Raises:
            ValueError, TypeError: fewer than two samples, or as in `log_density`.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> from cdrl_fast.data import load_data
            >>> images, _ = load_data("digits").batch(range(4))
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> statistics = sampler.level_statistics(images, levels=(1, 2))
            >>> sampler.log_density(images, levels=(1, 2), statistics=statistics).shape
            torch.Size([4])
        """
        levels = range(1, self.model.schedule.levels + 1) if levels is None else levels
        if len(images) < 2:
            raise ValueError(f"level_statistics: expected at least 2 samples, got {len(images)}")
        densities = self._densities(images, label, levels, (seed, 0), batch_size)
        return LevelStatistics.from_densities(levels, densities)

    def _densities(
        self,
        images: Tensor,
        label: Label,
        levels: Sequence[int],
        rng: tuple[int, int],
        batch_size: int,
    ) -> Tensor:
        """Check the arguments and return the log-densities (levels, n)."""
        images = checked_samples("log_density", images, self.model.sample_shape)
        if not bool(images.isfinite().all()):
            raise ValueError("log_density: images must be finite, got NaN or infinity")
        if not levels:
            raise ValueError("log_density: levels: expected at least one level, got none")
        for t in levels:
            check_integer("log_density", "level", t, 1, self.model.schedule.levels + 1)
        check_integer("log_density", "batch_size", batch_size, 1, 2**31)
        check_stream_position("log_density", rng[0], 0, rng[1], len(images))
        n = len(images)
        terms = label_terms(self.source, rng, n, label, 0.0, self.device)
        self._frozen.refresh()
        batches = []
        for start in range(0, max(n, 1), batch_size):
            stop = min(start + batch_size, n)
            x0 = images[start:stop].to(self.device, self.dtype)
            batch_terms = [network_terms.slice(start, stop) for network_terms in terms]
            batch_rng = (rng[0], rng[1] + start)
            batches.append(
                level_densities(self.model, self._frozen, x0, levels, batch_terms, batch_rng)
            )
        return torch.cat(batches, dim=1)
