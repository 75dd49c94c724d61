"""Traces: the states, log-densities and acceptance probabilities of a chain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cdrl_fast.sampling.hooks import ChainState, Hook

TraceKind = Literal["levels", "steps"]


@dataclass
class Trace:
    """The recorded states of n chains on their way from noise to samples.

    `Sampler.sample_trace` returns it. With trace="levels" the m records are x_T and the state
    after each level; with trace="steps" they are, for each level, the initializer's proposal and
    the state after each Langevin step.

    Attributes:
        samples: the samples, as `Sampler.sample` returns them.
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
        >>> trace = Sampler(CDRL.from_pretrained("digits")).sample_trace(2, steps=1)
        >>> len(trace.states)  # x_6 to x_0
        7
    """

    samples: Tensor
    states: Tensor
    energies: Tensor
    levels: Tensor
    acceptance: Tensor | None = None


class Recorder(Hook):
    """The hook that records a trace."""

    def __init__(self) -> None:
        self._batches: list[_Records] = []

    def started(self, state: ChainState) -> None:
        """Begin the records of a batch."""
        self._batches.append(_Records())

    def record(self, state: ChainState) -> None:
        """Record a state and its log-density."""
        records = self._batches[-1]
        records.states.append(state.x().float().cpu())
        records.energies.append(state.log_density().float().cpu())
        records.levels.append(state.level.t)

    def record_acceptance(self, probabilities: Tensor) -> None:
        """Record acceptance probabilities (steps, n) of some of the current level's steps."""
        records = self._batches[-1]
        records.acceptance.setdefault(records.levels[-1], []).append(probabilities.cpu())

    def trace(self, samples: Tensor) -> Trace:
        """Return the trace of all batches, whose ``samples`` these are."""
        batches = self._batches
        acceptance = [records.mean_acceptance() for records in batches if records.acceptance]
        return Trace(
            samples=samples,
            states=torch.cat([torch.stack(records.states) for records in batches], dim=1),
            energies=torch.cat([torch.stack(records.energies) for records in batches], dim=1),
            levels=torch.tensor(batches[0].levels),
            acceptance=torch.cat(acceptance, dim=1) if acceptance else None,
        )


class LevelRecorder(Recorder):
    """The recorder of x_T and of the state after each level."""

    def started(self, state: ChainState) -> None:
        """Begin the records of a batch with x_T."""
        super().started(state)
        self.record(state)

    finished = Recorder.record


class StepRecorder(Recorder):
    """The recorder of each level's proposal and of the state after each step."""

    per_step = True
    proposed = stepped = Recorder.record


RECORDERS: dict[TraceKind, type[Recorder]] = {"levels": LevelRecorder, "steps": StepRecorder}


@dataclass
class _Records:
    """Records of one batch; ``acceptance`` by level."""

    states: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    acceptance: dict[int, list[Tensor]] = field(default_factory=dict)

    def mean_acceptance(self) -> Tensor:
        """Return the mean acceptance probability of each level, (levels, n)."""
        means = [torch.cat(parts).mean(dim=0) for parts in self.acceptance.values()]
        return torch.stack(means).float()
