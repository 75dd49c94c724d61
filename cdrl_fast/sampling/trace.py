"""What a chain went through, for those who ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cdrl_fast.engine import LevelEnergy
from cdrl_fast.model.schedule import Level

TraceKind = Literal["levels", "steps"]


@dataclass
class Trace:
    """What a chain went through, from noise to sample.

    Attributes:
        states: float32 (m, n, …) in the coordinates of x: x_T, then the state after each level
            (trace="levels") or, within each level, the proposal and the state after each step
            (trace="steps").
        energies: float32 (m, n), the log-density f / s² of each state at its level, up to that
            level's constant.
        levels: int64 (m,), the level whose energy is meant.
        acceptance: with trace="steps", float32 (T, n): of levels T … 1, correctors with them, the
            mean probability with which a Metropolis test accepts a step, made or not. None with
            trace="levels", and in precisions (bf16, fp16, tf32) in which energies of neighbouring
            states cannot be compared.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler
        >>> _, trace = Sampler(CDRL.from_pretrained("digits")).sample(2, steps=1, trace="levels")
        >>> len(trace.states)  # x_6 to x_0
        7
    """

    states: Tensor
    energies: Tensor
    levels: Tensor
    acceptance: Tensor | None = None


@dataclass
class Recorder:
    """Collects a trace of one batch."""

    kind: TraceKind | None
    states: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    probabilities: dict[int, list[Tensor]] = field(default_factory=dict)

    def accepted(self, level: int, probabilities: Tensor) -> None:
        """Takes the acceptance of some of a level's steps, (steps, n)."""
        if self.kind == "steps":
            self.probabilities.setdefault(level, []).append(probabilities.cpu())

    @property
    def acceptance(self) -> Tensor | None:
        """(levels, n), means over steps; None where none was told."""
        if not self.probabilities:
            return None
        means = [torch.cat(parts).mean(dim=0) for parts in self.probabilities.values()]
        return torch.stack(means).float()

    @torch.no_grad()
    def record(
        self, kind: TraceKind, y: Tensor, level: Level, energy: LevelEnergy, *, rescaled: bool
    ) -> None:
        if self.kind != kind:
            return
        # Copies: the chain goes on in place.
        x = y.clone() if rescaled else y * level.rescale
        y = y * level.scale if rescaled else y
        value = energy.value(y)
        self.states.append(x.float().cpu())
        self.energies.append((value / level.energy_variance).float().cpu())
        self.levels.append(level.t)


def joined(recorders: list[Recorder]) -> Trace:
    def stacked(parts: Iterable[list[Tensor]]) -> Tensor:
        return torch.cat([torch.stack(part) for part in parts], dim=1)

    accepted = [r.acceptance for r in recorders if r.acceptance is not None]
    return Trace(
        states=stacked(r.states for r in recorders),
        energies=stacked(r.energies for r in recorders),
        levels=torch.tensor(recorders[0].levels),
        acceptance=torch.cat(accepted, dim=1) if accepted else None,
    )
