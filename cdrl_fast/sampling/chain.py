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
from cdrl_fast.ops.langevin_step import NEVER, place_of
from cdrl_fast.ops.philox import Purpose, level_draw
from cdrl_fast.sampling.inpainting import UNCONSTRAINED, Unconstrained
from cdrl_fast.sampling.metropolis import adjusted_steps_
from cdrl_fast.sampling.trace import Recorder

CORRECTOR = 2**15
"""Where correctors' draws begin within a level's."""


@dataclass
class Chain:
    """Chains of a model, or of several on one schedule.

    Attributes:
        model: tells schedule and shape.
        frozen: the networks.
        backend: the room of noise and Langevin steps.
        exact: whether energies are in the state's precision: a difference of two at neighbouring
            states is then worth something, and a traced chain's acceptance is told.
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
        hold: Unconstrained,
        recorder: Recorder,
        advance: Callable[[], object],
    ) -> tuple[Tensor, LevelEnergy]:
        """All levels, from x_T to x_0; and the last one's energy.

        Args:
            n: samples. rng: seed, and index of the first one.
            plan, terms, correctors, metropolis: as `Sampler.sample` takes them.
            hold: sets what is known of the samples.
            recorder: of what the chain goes through.
            advance: called after each Langevin step.

        Raises:
            ChainDiverged: a state left the finite numbers.
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
        hold(x, schedule.levels)
        for t, turn in product(range(schedule.levels, 0, -1), range(hold.passes)):
            level = schedule.level(t, plan)
            x = hold.noised_again(x, t, turn) if turn else x
            first_draw = Purpose.SAMPLING.draw(level_draw(t, schedule.levels))
            draw = first_draw + turn * (level.steps + 1)
            energy = frozen.at(level.logsnr, terms)
            proposal = frozen.proposal(level.logsnr_noisy, terms)
            # Without an initializer y is x itself, which the recovery term still needs.
            y = x.clone() if proposal is None else proposal(x) + level.init_std * noise(draw)
            hold(y, t - 1, level.scale)
            recorder.record("steps", y, level, energy, rescaled=False)

            def each(
                step: int,
                last: int,
                y: Tensor = y,
                level: Level = level,
                energy: LevelEnergy = energy,
            ) -> None:
                scale = level.scale * (level.rescale if step == last else 1.0)
                hold(y, level.t - 1, scale)
                recorder.record("steps", y, level, energy, rescaled=step == last)
                advance()

            walk = partial(
                self._steps,
                energy,
                y,
                level,
                rng=rng,
                first_bad=first_bad,
                metropolis=metropolis,
                recorder=recorder,
                held=hold is not UNCONSTRAINED,
            )
            walk(
                x,
                pull=level.pull,
                steps=level.steps,
                draw=draw,
                rescale=1.0 if correctors else level.rescale,
                each=partial(each, last=0 if correctors else level.steps),
            )
            if correctors:
                walk(
                    None,
                    pull=0.0,
                    steps=correctors,
                    draw=first_draw + CORRECTOR - 1 + turn * correctors,
                    rescale=level.rescale,
                    each=partial(each, last=correctors),
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
        held: bool,
        rescale: float,
        each: Callable[[int], None],
    ) -> None:
        """Langevin steps at a level, of which the first takes the draw after ``draw``."""
        seed, first_sample = rng
        numbers: dict[str, Any] = {
            "steps": steps,
            "drift": level.drift,
            "pull": pull,
            "noise_std": level.noise_std,
            "first_bad": first_bad,
            "rescale": rescale,
            "backend": self.backend,
            "each": each,
        }
        anchor = anchor if pull else None
        observed = recorder.kind == "steps"
        if not metropolis and not (observed and self.exact):
            place = (seed, draw + 1, first_sample)
            energy.langevin_(y, anchor, rng=place, observed=observed or held, **numbers)
            return
        shift = Purpose.ACCEPTANCE.draw(0) - Purpose.SAMPLING.draw(0)
        probabilities = adjusted_steps_(
            energy.value_and_gradient,
            y,
            anchor,
            noise=lambda k: (seed, draw + k, first_sample),
            acceptance=lambda k: (seed, shift + draw + k, first_sample),
            adjust=metropolis,
            **numbers,
        )
        recorder.accepted(level.t, probabilities)

    def finish(self, x: Tensor, energy: LevelEnergy, denoise_scale: float) -> Tensor:
        """Tweedie's denoising step and the clamp, for images; returns float32 (float64)."""
        if not self.model.is_image:
            return x
        schedule, level = self.model.schedule, self.model.schedule.level(1)
        gradient = energy.gradient(level.scale * x)
        score = (denoise_scale * level.scale / level.energy_variance) * gradient
        clean = (x + float(schedule.noise_variance[0]) * score) / math.sqrt(schedule.alpha_bar[0])
        return clean.clamp(-1.0, 1.0)

    def raise_if_diverged(self, first_bad: Tensor, first_sample: int) -> None:
        """Names level, step and sample of a chain that left the finite numbers."""
        code = int(first_bad)
        if code == NEVER:
            return
        draw, position = place_of(code)
        sample = first_sample + position
        level, step = self.model.schedule.levels + 1 - (draw >> 16), draw & 0xFFFF
        what = "step" if step < CORRECTOR else "corrector"
        step = step if step < CORRECTOR else step - CORRECTOR + 1
        raise ChainDiverged(
            f"the chain of sample {sample} left the finite numbers at level {level}, {what} "
            f"{step}; use more steps, a smaller step multiplier or less guidance, or check the "
            "weights",
            level=level,
            step=step,
            sample=sample,
        )
