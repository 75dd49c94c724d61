"""A phase: Langevin steps with the same coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdrl_fast.ops.coefficients import Coefficient

if TYPE_CHECKING:
    from cdrl_fast.ops.keys import Key


@dataclass(frozen=True)
class Phase:
    """Langevin steps y ← y + drift ∇f(y) - pull (y - anchor) + noise_std z.

    Attributes:
        steps: number of steps.
        drift, pull, noise_std: a number, or a tensor (batch,) with one entry per sample.
        rescale: factor of y after the last step, likewise.
        key: place in the noise stream: step k = 1 … ``steps`` draws z at ``key + k``.

    Examples:
        >>> from cdrl_fast.ops import Key, Phase
        >>> phase = Phase(10, drift=0.5, pull=0.1, noise_std=1.0, rescale=1.0, key=Key(0, 16))
        >>> phase.coefficients
        (0.5, 0.1, 1.0, 1.0)
    """

    steps: int
    drift: Coefficient
    pull: Coefficient
    noise_std: Coefficient
    rescale: Coefficient
    key: Key

    @property
    def coefficients(self) -> tuple[Coefficient, Coefficient, Coefficient, Coefficient]:
        """Drift, pull, noise_std and rescale."""
        return self.drift, self.pull, self.noise_std, self.rescale
