"""Traces: the states, log-densities and acceptance probabilities of a chain."""

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
    """The recorded states of n chains on their way from noise to samples.

    ``Sampler.sample(trace=…)`` returns it. With trace="levels" the m records are x_T and the state
    after each level; with trace="steps" they are, for each level, the initializer's proposal and
    the state after each Langevin step.

    Attributes:
        states: float32 (m, n, …), the recorded states in the coordinates of x_t.
        energies: float32 (m, n), the log-density f / s² of each state at its level, up to a
            constant per level.
        levels: int64 (m,), the level t whose energy each record is evaluated with.
        acceptance: float32 (T, n) with trace="steps": the probability that a Metropolis test
            accepts a step, averaged over the steps and correctors of each level T … 1. It is
            recorded whether or not ``metropolis`` applies the test. None with trace="levels", and
            in the precisions (bf16, fp16, tf32) that are too coarse to compare the energies of
            neighbouring states.

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
    """The recorder of one batch's trace; without a kind it records nothing."""

    kind: TraceKind | None
    states: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    probabilities: dict[int, list[Tensor]] = field(default_factory=dict)

    def record_acceptance(self, level: int, probabilities: Tensor) -> None:
        """Store acceptance probabilities (steps, n) of some of a level's steps."""
        if self.kind == "steps":
            self.probabilities.setdefault(level, []).append(probabilities.cpu())

    @property
    def acceptance(self) -> Tensor | None:
        """The mean acceptance probabilities (levels, n); None where nothing was recorded."""
        if not self.probabilities:
            return None
        means = [torch.cat(parts).mean(dim=0) for parts in self.probabilities.values()]
        return torch.stack(means).float()

    @torch.no_grad()
    def record(
        self, kind: TraceKind, y: Tensor, level: Level, energy: LevelEnergy, *, rescaled: bool
    ) -> None:
        """Store a state y, with its log-density, if the trace is of this kind.

        Args:
            kind: what this state belongs to: "levels" or "steps".
            y: the state (n, …).
            level, energy: the level and its energy.
            rescaled: whether y is already x_{t-1}, not m_t x_{t-1}.
        """
        if self.kind != kind:
            return
        # The chain updates y in place, so the records are copies.
        x = y.clone() if rescaled else y * level.rescale
        y = y * level.scale if rescaled else y
        value = energy.value(y)
        self.states.append(x.float().cpu())
        self.energies.append((value / level.energy_variance).float().cpu())
        self.levels.append(level.t)


def merge_traces(recorders: list[Recorder]) -> Trace:
    """Return one trace of all batches."""

    def merge(batches: Iterable[list[Tensor]]) -> Tensor:
        return torch.cat([torch.stack(records) for records in batches], dim=1)

    acceptance = [r.acceptance for r in recorders if r.acceptance is not None]
    return Trace(
        states=merge(r.states for r in recorders),
        energies=merge(r.energies for r in recorders),
        levels=torch.tensor(recorders[0].levels),
        acceptance=torch.cat(acceptance, dim=1) if acceptance else None,
    )
