"""The loop over noise levels: from noise to a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, LevelEnergy, Terms
from cdrl_fast.errors import ChainDiverged
from cdrl_fast.inpainting import FREE, Free
from cdrl_fast.model import CDRL
from cdrl_fast.ops import normal
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import Purpose, level_draw
from cdrl_fast.schedule import Level, StepPlan
from cdrl_fast.trace import Recorder

CORRECTOR = 2**15
"""Where correctors' draws begin within a level's."""


@dataclass
class Chain:
    """Chains of a model, or of several on one schedule.

    Attributes:
        model: tells schedule and shape.
        frozen: the networks.
        backend: the room of noise and Langevin steps.
    """

    model: CDRL
    frozen: FrozenModel
    backend: str

    def run(
        self,
        n: int,
        rng: tuple[int, int],
        plan: StepPlan,
        terms: tuple[Terms, ...],
        correctors: int,
        recorder: Recorder,
        advance: Callable[[], None],
        hold: Free = FREE,
    ) -> tuple[Tensor, LevelEnergy]:
        """All levels, from x_T to x_0; and the last one's energy.

        Args:
            n: samples. rng: seed, and index of the first one.
            plan, terms, correctors: as `Sampler.sample` takes them.
            recorder: of what the chain goes through.
            advance: called after each Langevin step.
            hold: of entries that are known.

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
                hold(y, level.t - 1, level.scale * (level.rescale if step == last else 1.0))
                recorder.record("steps", y, level, energy, rescaled=step == last)
                advance()

            walk = partial(
                energy.walk,
                y,
                drift=level.drift,
                noise_std=level.noise_std,
                first_bad=first_bad,
                backend=self.backend,
                observed=recorder.kind == "steps" or hold is not FREE,
            )
            walk(
                x if level.pull else None,
                steps=level.steps,
                pull=level.pull,
                rng=(seed, draw + 1, first_sample),
                rescale=1.0 if correctors else level.rescale,
                each=partial(each, last=0 if correctors else level.steps),
            )
            if correctors:
                walk(
                    None,
                    steps=correctors,
                    pull=0.0,
                    rng=(seed, first_draw + CORRECTOR + turn * correctors, first_sample),
                    rescale=level.rescale,
                    each=partial(each, last=correctors),
                )
            x = y
            recorder.record("levels", x, level, energy, rescaled=True)
        self.raise_if_diverged(first_bad, first_sample)
        return x, energy

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
        draw, sample = code >> 31, first_sample + (code & (2**31 - 1))
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
