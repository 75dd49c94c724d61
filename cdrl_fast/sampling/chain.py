"""The loop over noise levels: from noise to a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cdrl_fast.engine import Context, EnergyAt, Terms
from cdrl_fast.engine.frozen import Proposal
from cdrl_fast.errors import ChainDiverged
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Level, StepPlan
from cdrl_fast.ops.keys import ChainKeys
from cdrl_fast.ops.langevin_step import NEVER, decode_first_bad
from cdrl_fast.ops.phase import Phase
from cdrl_fast.sampling.hooks import ChainState, Hook
from cdrl_fast.sampling.transitions import Transition, unadjusted


class Networks(Protocol):
    """Networks as a chain uses them, such as a `FrozenModel`."""

    device: torch.device
    backend: str
    noise: dict[str, Any]

    def at(self, logsnr: float, terms: Sequence[Terms]) -> EnergyAt:
        """Return the energies at λ_{t-1}."""

    def proposal(self, logsnr: float, terms: Sequence[Terms]) -> Proposal | None:
        """Return the initializers at λ_t; None without initializers."""


@dataclass
class Chain:
    """A batch of chains: x_T ~ N(0, I), then levels T … 1, each a proposal and Langevin steps.

    Its methods are called without autograd.

    Attributes:
        model: the model that defines schedule and sample shape.
        networks: the networks, of this model or of several with the same schedule.
        keys: the chains' random numbers.
        transition: takes the steps of a phase.
        correctors: number of steps without recovery term after those of each level.
        hooks: look at the states, or change them.
        first_bad: see `langevin_step`.
        energy: the energy of the current level.
    """

    model: CDRL
    networks: Networks
    keys: ChainKeys
    transition: Transition = unadjusted
    correctors: int = 0
    hooks: Sequence[Hook] = ()
    first_bad: Tensor = field(init=False)
    energy: EnergyAt = field(init=False)

    def __post_init__(self) -> None:
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.networks.device)

    def run(self, n: int, plan: StepPlan, terms: Sequence[Terms]) -> Tensor:
        """Return the states x_0 of n chains.

        Args:
            n: number of samples.
            plan: Langevin steps of each level.
            terms: terms of each network.
        """
        schedule = self.model.schedule
        x = self.keys.start().normal(self.shape(n), **self.networks.noise)
        levels = [schedule.level(t, plan) for t in range(schedule.levels, 0, -1)]
        if self.hooks:
            energy = self.networks.at(levels[0].logsnr, terms)
            state = ChainState(x, levels[0], energy, rescaled=True)
            for hook in self.hooks:
                hook.started(state)
        for level in levels:
            x = self.level(x, level, terms)
        return x

    def level(self, x: Tensor, level: Level, terms: Sequence[Terms], pass_index: int = 0) -> Tensor:
        """Return x_{t-1} from x_t; ``pass_index`` counts earlier passes through this level."""
        self.energy = self.networks.at(level.logsnr, terms)
        y = self._propose(x, level, terms, pass_index)
        for hook in self.hooks:
            hook.proposed(ChainState(y, level, self.energy))
        for phase in self._phases(level, pass_index):
            anchor, context = x if phase.pull else None, self._context(y, level, phase)
            self.transition(self.energy, y, anchor, phase, context)
        for hook in self.hooks:
            hook.finished(ChainState(y, level, self.energy, rescaled=True))
        return y

    def _propose(self, x: Tensor, level: Level, terms: Sequence[Terms], pass_index: int) -> Tensor:
        proposal = self.networks.proposal(level.logsnr_noisy, terms)
        if proposal is None:
            # A copy, because the recovery term still needs x.
            return x.clone()
        key = self.keys.proposal(level.t, level.steps, pass_index)
        return proposal(x) + level.init_std * key.normal(x.shape, **self.networks.noise)

    def _phases(self, level: Level, pass_index: int) -> Iterator[Phase]:
        """Yield the level's steps, and its correctors; the last phase ends with the rescaling."""
        key = self.keys.proposal(level.t, level.steps, pass_index)
        rescale = 1.0 if self.correctors else level.rescale
        yield Phase(level.steps, level.drift, level.pull, level.noise_std, rescale, key)
        if self.correctors:
            key = self.keys.correctors(level.t, self.correctors, pass_index)
            yield Phase(self.correctors, level.drift, 0.0, level.noise_std, level.rescale, key)

    def _context(self, y: Tensor, level: Level, phase: Phase) -> Context:
        """Return what the steps of a phase need besides; the hooks look at each step."""
        energy, backend = self.energy, self.networks.backend
        if not self.hooks:
            return Context(self.first_bad, backend)

        def after_step(k: int) -> None:
            rescaled = bool(k == phase.steps and phase.rescale == level.rescale)
            for hook in self.hooks:
                hook.stepped(ChainState(y, level, energy, k, rescaled))

        per_step = any(hook.per_step for hook in self.hooks)
        return Context(self.first_bad, backend, after_step, per_step)

    def denoise(self, x: Tensor, scale: float) -> Tensor:
        """Return the samples of states x_0: Tweedie's denoising step and the clamp, for images.

        Args:
            x: states x_0 (n, …), after level 1.
            scale: factor of the score.
        """
        if not self.model.is_image:
            return x
        schedule, level = self.model.schedule, self.model.schedule.level(1)
        gradient = self.energy.gradient(level.scale * x)
        score = (scale * level.scale / level.energy_variance) * gradient
        clean = (x + float(schedule.noise_variance[0]) * score) / math.sqrt(schedule.alpha_bar[0])
        return clean.clamp(-1.0, 1.0)

    @property
    def passes(self) -> int:
        """Number of passes through each level."""
        return 1

    def shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of n samples."""
        return n, *self.model.sample_shape

    def steps(self, plan: StepPlan) -> int:
        """Return the number of Langevin steps that a sample takes."""
        return self.passes * (sum(plan.counts) + self.correctors * len(plan.counts))

    def raise_if_diverged(self) -> None:
        """Raise `ChainDiverged` with sample, level and step if a state became non-finite."""
        code = int(self.first_bad)
        if code == NEVER:
            return
        draw, position = decode_first_bad(code)
        level, kind, step = self.keys.step_at(draw)
        sample = int(self.keys.first_sample) + position
        raise ChainDiverged(
            f"the chain of sample {sample} became non-finite (NaN or Inf) at "
            f"level {level}, {kind} {step}; use more steps, a smaller step multiplier or less "
            "guidance, or check the weights",
            level=level,
            step=step,
            sample=sample,
        )
