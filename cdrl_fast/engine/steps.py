"""Energies at a level, and the one loop over Langevin steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cdrl_fast.ops.langevin_step import bound_step
from cdrl_fast.ops.phase import Phase


class Context(NamedTuple):
    """The surroundings of a phase: what its steps need besides energy, states and coefficients.

    Attributes:
        first_bad: see `langevin_step`.
        backend: of the steps, as for `langevin_step`.
        after_step: called with k after step k; None: nobody looks.
        per_step: whether ``after_step`` reads or changes the state. If not, one kernel call may
            take all steps, and ``after_step`` is called after the last one only.
    """

    first_bad: Tensor
    backend: str = "auto"
    after_step: Callable[[int], None] | None = None
    per_step: bool = False


def take_steps(step: Callable[[int], None], steps: int, context: Context) -> None:
    """Call ``step(k)`` for k = 1 … ``steps``, and ``context.after_step(k)`` after each."""
    for k in range(1, steps + 1):
        step(k)
        if context.after_step is not None:
            context.after_step(k)


class EnergyAt(ABC):
    """A network's energy at fixed levels and labels: a function f of the state y alone."""

    @abstractmethod
    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(y), (batch,), and ∇f(y), which the next call may overwrite."""

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        return []

    def value(self, y: Tensor) -> Tensor:
        """Return f(y): (batch,)."""
        return self.value_and_gradient(y)[0]

    def gradient(self, y: Tensor) -> Tensor:
        """Return ∇f(y), in y's shape; the next call may write into the same memory."""
        return self.value_and_gradient(y)[1]

    def langevin_(self, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context) -> None:
        """Take the Langevin steps of a phase, in place.

        Energies whose kernels take a step or a whole phase at once override this method.

        Args:
            y: states (batch, …), dense.
            anchor: x_t of the recovery term, or None if ``phase.pull`` is 0.
            phase: number of steps, coefficients and place in the noise stream.
            context: what else the steps need.
        """
        first_bad, backend = context.first_bad, context.backend
        update = bound_step(y, anchor, phase, first_bad=first_bad, backend=backend)
        take_steps(lambda k: update(self.gradient(y)), phase.steps, context)
