"""How likely samples are, level by level: for telling what a model has not been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, Terms
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.ops import normal
from cdrl_fast.ops.philox import Purpose, check_integer, check_place
from cdrl_fast.sampling.label_terms import label_terms


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
            x = schedule.add_noise(x0, noise, t - 1)
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


class Scoring:
    """The part of `Sampler` that tells how likely samples are."""

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
        """How likely samples are: f(m_t x_{t-1}, λ_{t-1}) / s_t², up to a constant a level.

        At level 1 that is log p of the images themselves, f(m_1 x, λ_0) / s_1²; at level t of
        x_{t-1} = √ᾱ_{t-1} x + √(1 - ᾱ_{t-1}) ε, with ε from the noise stream. What a model has not
        been trained on has a low one.

        Args:
            images: (n, C, H, W) in [-1, 1], or points (n, dim).
            label: log p(·|label), as in `sample`.
            levels: t of each level, 1 … T.
            statistics: from `level_statistics`; then the mean over levels of (density - mean)/std.
                Densities of different levels have different spreads, so several levels need them.
            seed, first_sample: of ε.
            batch_size: samples that go through the network together; results do not depend on it.

        Returns:
            (n,) float32 (float64 with precision="fp64"), where the networks are.

        Raises:
            ValueError, TypeError: samples, levels or labels that do not fit.

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
        found = self._densities(images, label, levels, (seed, first_sample), batch_size)
        return found[0] if statistics is None else statistics.score(levels, found)

    def level_statistics(
        self,
        images: Tensor,
        *,
        label: Label = None,
        levels: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 1024,
    ) -> LevelStatistics:
        """Mean and standard deviation of `log_density` at each level; arguments as there.

        Args:
            images: at least two, such as the training data or a part of it.
            levels: None: all.
            label, seed, batch_size: as in `log_density`.

        Returns:
            `LevelStatistics`, for ``log_density(statistics=)``.

        Raises:
            ValueError, TypeError: fewer than two samples; else as `log_density`.

        Examples:
            >>> from cdrl_fast import CDRL, Sampler
            >>> from cdrl_fast.data import load_data
            >>> images, _ = load_data("digits").batch(range(4))
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> usual = sampler.level_statistics(images, levels=(1, 2))
            >>> sampler.log_density(images, levels=(1, 2), statistics=usual).shape
            torch.Size([4])
        """
        levels = range(1, self.model.schedule.levels + 1) if levels is None else levels
        if len(images) < 2:
            raise ValueError(f"level_statistics: expected at least 2 samples, got {len(images)}")
        found = self._densities(images, label, levels, (seed, 0), batch_size)
        return LevelStatistics.of(levels, found)

    def _densities(
        self,
        images: Tensor,
        label: Label,
        levels: Sequence[int],
        rng: tuple[int, int],
        batch_size: int,
    ) -> Tensor:
        """Log-densities (levels, n)."""
        images = checked_samples("log_density", images, self.model.sample_shape)
        if not bool(images.isfinite().all()):
            raise ValueError("log_density: expected finite numbers, got NaN or infinity")
        if not levels:
            raise ValueError("log_density: expected at least one level")
        for t in levels:
            check_integer("log_density", "level", t, 1, self.model.schedule.levels + 1)
        check_integer("log_density", "batch_size", batch_size, 1, 2**31)
        check_place("log_density", rng[0], 0, rng[1], len(images))
        n = len(images)
        terms = label_terms(self.source, rng, n, label, 0.0, self.device)
        self._frozen.refresh()
        parts = []
        for start in range(0, max(n, 1), batch_size):
            stop = min(start + batch_size, n)
            x0 = images[start:stop].to(self.device, self.dtype)
            part = [of_network.slice(start, stop) for of_network in terms]
            at = (rng[0], rng[1] + start)
            parts.append(level_densities(self.model, self._frozen, x0, levels, part, at))
        return torch.cat(parts, dim=1)
