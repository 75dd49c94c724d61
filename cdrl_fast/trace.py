"""What a chain went through, for those who ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cdrl_fast.engine import LevelEnergy
from cdrl_fast.schedule import Level

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
    """

    states: Tensor
    energies: Tensor
    levels: Tensor


@dataclass
class Recorder:
    """Collects a trace of one batch."""

    kind: TraceKind | None
    states: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

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

    return Trace(
        states=stacked(r.states for r in recorders),
        energies=stacked(r.energies for r in recorders),
        levels=torch.tensor(recorders[0].levels),
    )
