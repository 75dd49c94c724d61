"""Hooks: functions that look at a chain while it runs, or change its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdrl_fast.engine import EnergyAt
from cdrl_fast.model.schedule import Level


@dataclass(frozen=True)
class ChainState:
    """The states of a batch of chains at one moment.

    Attributes:
        y: the states (n, …) in the coordinates of the level; the chain goes on in this memory.
        level: constants of the level.
        energy: the level's energy f.
        step: number of steps taken in the current phase, 0 before the first one.
        rescaled: whether y is already x_{t-1} instead of m_t x_{t-1}.
    """

    y: Tensor
    level: Level
    energy: EnergyAt
    step: int = 0
    rescaled: bool = False

    @property
    def scale(self) -> float:
        """Factor from x_{t-1} to y: m_t, or 1 after rescaling up to rounding."""
        return self.level.scale * (self.level.rescale if self.rescaled else 1.0)

    def x(self) -> Tensor:
        """Return a copy of the states as x_{t-1}."""
        return self.y.clone() if self.rescaled else self.y * self.level.rescale

    def log_density(self) -> Tensor:
        """Return the log-density f / s² of the states at their level, (n,), up to a constant."""
        y = self.y * self.level.scale if self.rescaled else self.y
        return self.energy.value(y) / self.level.energy_variance


class Hook:
    """Base class of hooks, whose methods do nothing; override those that you need.

    A hook may read a state or change ``state.y`` in place; the latter not with `Adjusted` steps,
    which remember energy and gradient.

    Attributes:
        per_step: whether `stepped` must be called after every step. If not, a kernel may take all
            steps of a phase in one call, and `stepped` is called after the last one only.

    Examples:
        >>> from cdrl_fast import Hook, Sampler, SampleRequest
        >>> class Norms(Hook):
        ...     values = []
        ...     def finished(self, state):
        ...         self.values.append(float(state.x().norm()))
        >>> sampler, norms = Sampler.from_pretrained("digits"), Norms()
        >>> samples = sampler.run(SampleRequest(2, steps=1), hooks=[norms])
        >>> len(norms.values)  # one per level
        6
    """

    per_step = False

    def started(self, state: ChainState) -> None:
        """Look at ``state``: x_T, before the first level."""

    def proposed(self, state: ChainState) -> None:
        """Look at ``state``: a level's proposal y_0, before its steps."""

    def stepped(self, state: ChainState) -> None:
        """Look at ``state`` after a Langevin step."""

    def finished(self, state: ChainState) -> None:
        """Look at ``state``: x_{t-1}, at the end of a level."""


class Progress(Hook):
    """Advances a progress bar by the steps taken.

    Args:
        bar: a `tqdm` bar or another object with ``update(n)``.
    """

    def __init__(self, bar: Any) -> None:
        self._bar, self._step = bar, 0

    def stepped(self, state: ChainState) -> None:
        """Advance the bar by the steps since the last call."""
        before = self._step if state.step > self._step else 0
        self._bar.update(state.step - before)
        self._step = state.step
