"""The loop over noise levels: from noise to a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, LevelEnergy, Terms
from cdrl_fast.errors import ChainDiverged
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Level, StepPlan
from cdrl_fast.ops import normal
from cdrl_fast.ops.langevin_step import NEVER, decode_first_bad
from cdrl_fast.ops.philox import Purpose, level_draw
from cdrl_fast.sampling.inpainting import UNCONSTRAINED, Unconstrained
from cdrl_fast.sampling.metropolis import adjusted_steps_
from cdrl_fast.sampling.trace import Recorder

CORRECTOR = 2**15
"""Offset of the correctors' draws within the draws of a level."""


@dataclass
class Chain:
    """The chains of one model, or of several models with the same schedule.

    Attributes:
        model: the model that defines schedule and sample shape.
        frozen: the networks.
        backend: backend of noise and Langevin steps.
        exact: whether energies are computed in the precision of the state. Only then can those of
            neighbouring states be compared, and traces of steps contain acceptance probabilities.
    """

    model: CDRL
    frozen: FrozenModel
    backend: str
    exact: bool

    def run(
        self,
        n: int,
        rng: tuple[int, int],
        plan: StepPlan,
        terms: tuple[Terms, ...],
        correctors: int,
        metropolis: bool,
        constraint: Unconstrained,
        recorder: Recorder,
        advance: Callable[[], object],
    ) -> tuple[Tensor, LevelEnergy]:
        """Run a batch of chains through all levels, from x_T to x_0.

        Args:
            n: number of samples.
            rng: seed and index of the first sample.
            plan: Langevin steps per level.
            terms: terms of each network.
            correctors, metropolis: as in `Sampler.sample`.
            constraint: sets the known entries of states.
            recorder: records the trace.
            advance: called after each Langevin step.

        Returns:
            The states x_0 (n, …) and the energy of level 1.

        Raises:
            ChainDiverged: a state became non-finite (NaN or Inf).
        """
        seed, first_sample = rng
        schedule, frozen = self.model.schedule, self.frozen
        shape = (n, *self.model.sample_shape)
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=frozen.device)

        def noise(draw: int) -> Tensor:
            return normal(
                shape,
                seed=seed,
                draw=draw,
                first_sample=first_sample,
                device=frozen.device,
                dtype=frozen.dtype,
                backend=self.backend,
            )

        x = noise(Purpose.SAMPLING.draw(0))
        if recorder.kind == "levels":
            level = schedule.level(schedule.levels)
            energy = frozen.at(level.logsnr, terms)
            recorder.record("levels", x, level, energy, rescaled=True)
        constraint.apply_(x, schedule.levels)
        for t, pass_index in product(range(schedule.levels, 0, -1), range(constraint.passes)):
            level = schedule.level(t, plan)
            x = constraint.renoise(x, t, pass_index) if pass_index else x
            first_draw = Purpose.SAMPLING.draw(level_draw(t, schedule.levels))
            draw = first_draw + pass_index * (level.steps + 1)
            energy = frozen.at(level.logsnr, terms)
            proposal = frozen.proposal(level.logsnr_noisy, terms)
            # Without an initializer y starts as a copy of x, which the recovery term still needs.
            y = x.clone() if proposal is None else proposal(x) + level.init_std * noise(draw)
            constraint.apply_(y, t - 1, level.scale)
            recorder.record("steps", y, level, energy, rescaled=False)

            def after_step(
                step: int,
                last: int,
                y: Tensor = y,
                level: Level = level,
                energy: LevelEnergy = energy,
            ) -> None:
                scale = level.scale * (level.rescale if step == last else 1.0)
                constraint.apply_(y, level.t - 1, scale)
                recorder.record("steps", y, level, energy, rescaled=step == last)
                advance()

            take_steps = partial(
                self._steps,
                energy,
                y,
                level,
                rng=rng,
                first_bad=first_bad,
                metropolis=metropolis,
                recorder=recorder,
                constrained=constraint is not UNCONSTRAINED,
            )
            take_steps(
                x,
                pull=level.pull,
                steps=level.steps,
                draw=draw,
                rescale=1.0 if correctors else level.rescale,
                after_step=partial(after_step, last=0 if correctors else level.steps),
            )
            if correctors:
                take_steps(
                    None,
                    pull=0.0,
                    steps=correctors,
                    draw=first_draw + CORRECTOR - 1 + pass_index * correctors,
                    rescale=level.rescale,
                    after_step=partial(after_step, last=correctors),
                )
            x = y
            recorder.record("levels", x, level, energy, rescaled=True)
        self.raise_if_diverged(first_bad, first_sample)
        return x, energy

    def _steps(
        self,
        energy: LevelEnergy,
        y: Tensor,
        level: Level,
        anchor: Tensor | None,
        *,
        pull: float,
        steps: int,
        rng: tuple[int, int],
        draw: int,
        first_bad: Tensor,
        metropolis: bool,
        recorder: Recorder,
        constrained: bool,
        rescale: float,
        after_step: Callable[[int], None],
    ) -> None:
        """Take Langevin steps of y in place at a level.

        Args:
            energy: the level's energy.
            y: states (n, …) in the coordinates m_t x_{t-1}.
            level: the level's constants.
            anchor: x_t of the recovery term, or None.
            pull: coefficient of the recovery term.
            steps: number of steps.
            rng: seed and index of the first sample.
            draw: the draw before that of the first step.
            first_bad: as in `ops.langevin_step`.
            metropolis: whether to accept or reject each step.
            recorder: records acceptance probabilities.
            constrained: whether ``after_step`` changes y.
            rescale: factor of y after the last step.
            after_step: called with k after step k = 1 … steps.
        """
        seed, first_sample = rng
        options: dict[str, Any] = {
            "steps": steps,
            "drift": level.drift,
            "pull": pull,
            "noise_std": level.noise_std,
            "first_bad": first_bad,
            "rescale": rescale,
            "backend": self.backend,
        }
        anchor = anchor if pull else None
        traced = recorder.kind == "steps"
        if not metropolis and not (traced and self.exact):
            position = (seed, draw + 1, first_sample)
            options |= {"each": after_step, "observed": traced or constrained}
            energy.langevin_(y, anchor, rng=position, **options)
            return
        acceptance_offset = Purpose.ACCEPTANCE.draw(0) - Purpose.SAMPLING.draw(0)
        probabilities = adjusted_steps_(
            energy.value_and_gradient,
            y,
            anchor,
            noise=lambda k: (seed, draw + k, first_sample),
            acceptance=lambda k: (seed, acceptance_offset + draw + k, first_sample),
            adjust=metropolis,
            after_step=after_step,
            **options,
        )
        recorder.record_acceptance(level.t, probabilities)

    def denoise(self, x: Tensor, energy: LevelEnergy, denoise_scale: float) -> Tensor:
        """Return the samples of states x_0: Tweedie's denoising step and the clamp, for images.

        Args:
            x: states x_0 (n, …).
            energy: energy of level 1.
            denoise_scale: factor of the score.
        """
        if not self.model.is_image:
            return x
        schedule, level = self.model.schedule, self.model.schedule.level(1)
        gradient = energy.gradient(level.scale * x)
        score = (denoise_scale * level.scale / level.energy_variance) * gradient
        clean = (x + float(schedule.noise_variance[0]) * score) / math.sqrt(schedule.alpha_bar[0])
        return clean.clamp(-1.0, 1.0)

    def raise_if_diverged(self, first_bad: Tensor, first_sample: int) -> None:
        """Raise `ChainDiverged` with sample, level and step if a state became non-finite."""
        code = int(first_bad)
        if code == NEVER:
            return
        draw, position = decode_first_bad(code)
        sample = first_sample + position
        level, step = self.model.schedule.levels + 1 - (draw >> 16), draw & 0xFFFF
        kind = "step" if step < CORRECTOR else "corrector"
        step = step if step < CORRECTOR else step - CORRECTOR + 1
        raise ChainDiverged(
            f"the chain of sample {sample} became non-finite (NaN or Inf) at level {level}, {kind} "
            f"{step}; use more steps, a smaller step multiplier or less guidance, or check the "
            "weights",
            level=level,
            step=step,
            sample=sample,
        )
