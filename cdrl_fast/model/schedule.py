"""Noise schedule: the constants that depend only on the level, computed in float64.

Noise index ``t`` runs from 0 (almost clean) to ``T = levels`` (almost pure noise), and

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,   alpha_bar_t = sigmoid(logsnr_t),
    logsnr_t = -2 log tan(A t/T + B),
    B = arctan(exp(-logsnr_max/2)),  A = arctan(exp(-logsnr_min/2)) - B.

A *level* ``t`` in 1 … T is the transition x_t → x_{t-1}; the chain visits T, T-1, …, 1.
Source: Zhu, Xie, Wu, Gao, "Learning Energy-Based Models by Cooperative Diffusion Recovery
Likelihood", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

StepScale = Literal["cumulative", "constant"]

# The noise stream has 2^16 draws per level and 2^24 in all; with more, two steps would share noise.
MAX_STEPS, MAX_LEVELS = 2**16 - 1, 2**8 - 2


@dataclass(frozen=True)
class StepPlan:
    """Number and size of the Langevin steps at each level.

    Args:
        counts: number of steps at levels 1, 2, … T (in that order), each from 1 to 65535.
        multipliers: step multiplier ``h`` of each level: a step has ``h`` times the noise and
            ``h²`` times the drift of a training step.

    Raises:
        ValueError: different numbers of counts and multipliers, a count out of range, or a
            multiplier that is not positive and finite.
        TypeError: a count that is not an integer.

    Examples:
        >>> from cdrl_fast import NoiseSchedule, StepPlan
        >>> NoiseSchedule(levels=2).level(1, StepPlan((8, 4), (1.4, 1.9))).steps
        8
    """

    counts: tuple[int, ...]
    multipliers: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", tuple(_count(c) for c in self.counts))
        object.__setattr__(self, "multipliers", tuple(float(h) for h in self.multipliers))
        if len(self.counts) != len(self.multipliers):
            raise ValueError(
                f"StepPlan: expected as many multipliers as counts, got {len(self.counts)} counts "
                f"and {len(self.multipliers)} multipliers"
            )
        if max(self.counts, default=0) > MAX_STEPS:
            raise ValueError(
                f"StepPlan: expected at most {MAX_STEPS} steps per level, got {max(self.counts)}; "
                "the noise stream has no more draws"
            )
        if not all(np.isfinite(h) and h > 0 for h in self.multipliers):
            raise ValueError(
                f"StepPlan: multipliers must be positive and finite, got {self.multipliers}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as JSON values: ``StepPlan(**plan.to_dict()) == plan``.

        Examples:
            >>> from cdrl_fast import StepPlan
            >>> StepPlan((8, 4), (1.4, 1.9)).to_dict()
            {'counts': [8, 4], 'multipliers': [1.4, 1.9]}
        """
        return {"counts": list(self.counts), "multipliers": list(self.multipliers)}


Steps = int | Sequence[int] | StepPlan | Literal["tuned"] | None


@dataclass(frozen=True)
class Level:
    """Constants of one transition x_t → x_{t-1}, as Python numbers.

    A Langevin step is ``y + drift ∇f(y) - pull (y - x_t) + noise_std z`` in the coordinates
    ``y = scale · x_{t-1}``.

    Attributes:
        t: the level, 1 … T.
        steps: number of Langevin steps.
        logsnr: λ_{t-1}, an input of the energy network.
        logsnr_noisy: λ_t, an input of the initializer.
        scale: m_t = sqrt(alpha_bar_t / alpha_bar_{t-1}), and 1 at t = T.
        sigma: σ_t = sqrt(1 - alpha_bar_t / alpha_bar_{t-1}).
        init_std: standard deviation of the initializer's noise, in the coordinates of ``y``.
        drift: h²/2.
        pull: h² κ c_t, and 0 at t = T, where there is no recovery term.
        noise_std: h s_t, the standard deviation of one step's noise.
        energy_variance: s_t² = 2 κ c_t σ_t²; f / energy_variance is the log-density of ``y``.
        loss_weight: w_t = σ_1 / σ_t.
    """

    t: int
    steps: int
    logsnr: float
    logsnr_noisy: float
    scale: float
    sigma: float
    init_std: float
    drift: float
    pull: float
    noise_std: float
    energy_variance: float
    loss_weight: float

    @property
    def rescale(self) -> float:
        """Factor 1 / (m_t + 1e-8) that maps ``y`` to x_{t-1} after the last step."""
        return 1.0 / (self.scale + 1e-8)


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels and Langevin step sizes of a CDRL model.

    Args:
        levels: T, the number of noise levels, at most 254.
        steps: K, the number of Langevin steps per level in training and, by default, in sampling;
            at most 65535.
        logsnr_max: log signal-to-noise ratio at t = 0.
        logsnr_min: log signal-to-noise ratio at t = T.
        kappa: κ, half the ratio of a step's noise variance to c_t σ_t²; 2e-4 for images, 1e-3 for
            2-D points.
        step_scale: c_t = sqrt(1 - alpha_bar_{t-1}) / sqrt(1 - alpha_bar_0) ("cumulative", images)
            or 1 / sqrt(1 - alpha_bar_0) ("constant", 2-D points).

    Raises:
        ValueError: a value out of range.
        TypeError: ``levels`` or ``steps`` is not an integer.

    Examples:
        >>> from cdrl_fast import NoiseSchedule
        >>> round(NoiseSchedule().level(3).noise_std ** 2, 7)
        0.0078425
    """

    levels: int = 6
    steps: int = 15
    logsnr_max: float = 9.8
    logsnr_min: float = -5.1
    kappa: float = 2e-4
    step_scale: StepScale = "cumulative"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _count(self.levels, "levels"))
        object.__setattr__(self, "steps", _count(self.steps, "steps"))
        if self.levels > MAX_LEVELS or self.steps > MAX_STEPS:
            raise ValueError(
                f"NoiseSchedule: expected at most {MAX_LEVELS} levels of {MAX_STEPS} steps, got "
                f"{self.levels} of {self.steps}"
            )
        if not self.logsnr_max > self.logsnr_min:
            raise ValueError(
                f"NoiseSchedule: expected logsnr_max > logsnr_min, got {self.logsnr_max} and "
                f"{self.logsnr_min}"
            )
        if not (np.isfinite(self.logsnr).all() and self.noise_variance[0] > 0):
            raise ValueError(
                f"NoiseSchedule: logsnr from {self.logsnr_min} to {self.logsnr_max} is beyond the "
                "precision of float64; the paper's range is -5.1 to 9.8"
            )
        if not (np.isfinite(self.kappa) and self.kappa > 0):
            raise ValueError(f"NoiseSchedule: expected kappa > 0, got {self.kappa}")
        if self.step_scale not in ("cumulative", "constant"):
            raise ValueError(
                'NoiseSchedule: step_scale must be "cumulative" or "constant", got '
                f"{self.step_scale!r}"
            )

    @cached_property
    def logsnr(self) -> NDArray[np.float64]:
        """Log signal-to-noise ratio λ_t for t = 0 … T, float64 (T + 1,)."""
        low = np.arctan(np.exp(-0.5 * self.logsnr_max))
        high = np.arctan(np.exp(-0.5 * self.logsnr_min))
        u = np.arange(self.levels + 1, dtype=np.float64) / self.levels
        with np.errstate(divide="ignore"):
            return _frozen(-2.0 * np.log(np.tan((high - low) * u + low)))

    @cached_property
    def alpha_bar(self) -> NDArray[np.float64]:
        """Signal variance sigmoid(λ_t) for t = 0 … T, float64 (T + 1,)."""
        return _frozen(1.0 / (1.0 + np.exp(-self.logsnr)))

    @cached_property
    def noise_variance(self) -> NDArray[np.float64]:
        """Noise variance 1 - alpha_bar_t for t = 0 … T, float64 (T + 1,).

        It is computed as sigmoid(-λ_t), because the difference cancels at t = 0.
        """
        return _frozen(1.0 / (1.0 + np.exp(self.logsnr)))

    def add_noise(self, x0: Tensor, noise: Tensor, t: int) -> Tensor:
        """Return noisy samples x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε.

        Args:
            x0: samples, of any shape and floating-point dtype.
            noise: ε, standard normal, of the same shape.
            t: noise index, 0 … T.

        Returns:
            x_t, of the same shape.

        Raises:
            ValueError: ``t`` is not an index from 0 to T.

        Examples:
            >>> import torch
            >>> from cdrl_fast import NoiseSchedule
            >>> x0 = torch.ones(2, 2)
            >>> bool((NoiseSchedule().add_noise(x0, torch.zeros(2, 2), 0) > 0.99).all())
            True
        """
        if not 0 <= t <= self.levels:
            raise ValueError(f"add_noise: expected t of 0 to {self.levels}, got {t}")
        signal, std = np.sqrt(self.alpha_bar[t]), np.sqrt(self.noise_variance[t])
        return float(signal) * x0 + float(std) * noise

    def plan(self, steps: Steps = None) -> StepPlan:
        """Return the step plan that ``steps`` describes.

        Args:
            steps: None (K steps per level), an int K' for every level, a sequence with the number
                of steps at levels 1 … T, or a StepPlan. Unless it is a StepPlan, a level of K'
                steps gets the step multiplier h = √(K/K').

        Returns:
            A `StepPlan` with one entry per level.

        Raises:
            ValueError: a number of steps out of range, or not one entry per level.
            TypeError: anything else, also "tuned", since a tuned plan belongs to a model
                (`CDRL.plan`).

        Examples:
            >>> from cdrl_fast import NoiseSchedule
            >>> NoiseSchedule(levels=3).plan([15, 5, 3]).counts
            (15, 5, 3)
        """
        if isinstance(steps, StepPlan):
            plan = steps
        else:
            counts = self._counts(steps)
            plan = StepPlan(counts, tuple(float(np.sqrt(self.steps / c)) for c in counts))
        if len(plan.counts) != self.levels:
            raise ValueError(
                f"steps: expected one entry for each of {self.levels} levels, got "
                f"{len(plan.counts)}"
            )
        return plan

    def _counts(self, steps: int | Sequence[int] | str | None) -> tuple[int, ...]:
        if steps is None:
            return (self.steps,) * self.levels
        if isinstance(steps, str) or not isinstance(steps, (int, np.integer, Sequence, np.ndarray)):
            raise TypeError(
                f"steps: expected an int, one int for each of {self.levels} levels or a StepPlan, "
                f"got {steps!r}; for a model's tuned plan use CDRL.plan"
            )
        if isinstance(steps, (int, np.integer)):
            return (_count(steps),) * self.levels
        return tuple(_count(count) for count in steps)

    def level(self, t: int, steps: Steps = None) -> Level:
        """Return the constants of the transition x_t → x_{t-1}.

        Args:
            t: the level, 1 … T.
            steps: as in `plan`.

        Returns:
            A `Level` of Python numbers, computed in float64.

        Raises:
            ValueError: ``t`` is not a level, or ``steps`` as in `plan`.
            TypeError: ``steps`` as in `plan`.

        Examples:
            >>> from cdrl_fast import NoiseSchedule
            >>> NoiseSchedule().level(6).steps
            15
        """
        if not 1 <= t <= self.levels:
            raise ValueError(f"level: expected 1 to {self.levels}, got {t}")
        plan = self.plan(steps)
        count, h2 = plan.counts[t - 1], plan.multipliers[t - 1] ** 2
        ratio = self.alpha_bar[t] / self.alpha_bar[t - 1]
        sigma2 = 1.0 - ratio
        scale = 1.0 if t == self.levels else float(np.sqrt(ratio))
        posterior = self.noise_variance[t - 1] / self.noise_variance[t] * sigma2
        numerator = self.noise_variance[t - 1] if self.step_scale == "cumulative" else 1.0
        c = np.sqrt(numerator / self.noise_variance[0])
        variance = float(2.0 * self.kappa * c * sigma2)
        return Level(
            t=t,
            steps=count,
            logsnr=float(self.logsnr[t - 1]),
            logsnr_noisy=float(self.logsnr[t]),
            scale=scale,
            sigma=float(np.sqrt(sigma2)),
            init_std=float(np.sqrt(posterior)) * scale,
            drift=h2 / 2.0,
            pull=0.0 if t == self.levels else float(h2 * self.kappa * c),
            noise_std=float(np.sqrt(variance * h2)),
            energy_variance=variance,
            loss_weight=float(np.sqrt((1.0 - self.alpha_bar[1] / self.alpha_bar[0]) / sigma2)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as JSON values: ``NoiseSchedule(**s.to_dict()) == s``.

        Examples:
            >>> from cdrl_fast import NoiseSchedule
            >>> NoiseSchedule(levels=3).to_dict()["levels"]
            3
        """
        return asdict(self)


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values.setflags(write=False)
    return values


def _count(value: Any, name: str = "steps") -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)
