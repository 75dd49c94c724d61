"""Inpainting: chains whose known entries are set to the observation, noised to each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel
from cdrl_fast.errors import check_integer
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.schedule import NoiseSchedule, StepPlan, Steps
from cdrl_fast.ops import normal
from cdrl_fast.ops.philox import Purpose, level_draw
from cdrl_fast.sampling.candidates import CandidateSelector
from cdrl_fast.sampling.label_terms import cycled_classes, label_terms
from cdrl_fast.sampling.scoring import checked_samples

ObservationNoise = Literal["shared", "fresh"]
MAX_DRAWS = 2**15
"""Draws per level for the steps of all passes; correctors use the other half of a level's 2^16."""


class Unconstrained:
    """The constraint of chains without known entries: it changes nothing."""

    passes = 1

    def apply_(self, state: Tensor, t: int, scale: float = 1.0) -> None:
        """Set the known entries of scale · x_t in place."""

    def renoise(self, x: Tensor, t: int, pass_index: int) -> Tensor:
        """Return x_t, noised from x_{t-1}, for pass ``pass_index`` ≥ 1 through level t."""
        raise AssertionError("an unconstrained chain has one pass")

    def insert_known(self, samples: Tensor) -> Tensor:
        """Return the samples with their known entries set to the observation."""
        return samples


UNCONSTRAINED = Unconstrained()


class KnownEntries(Unconstrained):
    """The constraint that sets the known entries of a batch of chains to the observation.

    Args:
        observation: the observation of all chains.
        start, stop: the chains start … stop - 1 of this batch.
    """

    def __init__(self, observation: Observation, start: int, stop: int) -> None:
        rows = torch.arange(start, stop, device=observation.values.device)
        rows = rows // observation.chains_per_sample
        self.passes, self._observation = observation.passes, observation
        self._schedule = observation.schedule
        self._values, self._known = observation.values[rows], observation.known[rows]
        self._first_sample = observation.first_sample + start
        self._noised_level: tuple[int, Tensor] | None = None

    def apply_(self, state: Tensor, t: int, scale: float = 1.0) -> None:
        """Set the known entries to scale · (√ᾱ_t o + √(1 - ᾱ_t) ε) in place."""
        if self._noised_level is None or self._noised_level[0] != t:
            self._noised_level = (t, self._noised(t))
        torch.where(self._known, scale * self._noised_level[1], state, out=state)

    def renoise(self, x: Tensor, t: int, pass_index: int) -> Tensor:
        """Return √a_t x_{t-1} + σ_t z with a_t = ᾱ_t / ᾱ_{t-1}, known entries included."""
        ratio = self._schedule.alpha_bar[t] / self._schedule.alpha_bar[t - 1]
        # Index 0 of a level is the noise of its known entries; pass_index is at least 1.
        noise = self._normal(level_draw(t, self._schedule.levels) + pass_index)
        return float(np.sqrt(ratio)) * x + float(np.sqrt(1.0 - ratio)) * noise

    def insert_known(self, samples: Tensor) -> Tensor:
        """Return the samples with their known entries set to the observation, without noise."""
        return torch.where(self._known, self._values, samples)

    def _noised(self, t: int) -> Tensor:
        schedule = self._schedule
        # x_T counts as the result of a level T + 1, whose index 0 shared noise uses as well.
        index = level_draw(t + 1, schedule.levels) if self._observation.noise == "fresh" else 0
        return schedule.add_noise(self._values, self._normal(index), t)

    def _normal(self, index: int) -> Tensor:
        return normal(
            self._values.shape,
            seed=self._observation.seed,
            draw=Purpose.INPAINTING.draw(index),
            first_sample=self._first_sample,
            device=self._values.device,
            dtype=self._values.dtype,
            backend=self._observation.backend,
        )


@dataclass(frozen=True)
class Observation:
    """The known entries of n samples, and the settings of the chains that complete them.

    Attributes:
        values: (n, …), finite; 0 where unknown.
        known: bool (n, …), True where an entry is known.
        schedule: the noise schedule.
        chains_per_sample: number of chains of each sample; they are adjacent.
        noise: "shared": one ε per chain for all levels, or "fresh": one per chain and level.
        passes: number of passes through each level.
        seed, first_sample: seed and index of the first chain in the noise stream.
        backend: backend that draws the noise.
    """

    values: Tensor
    known: Tensor
    schedule: NoiseSchedule
    chains_per_sample: int
    noise: ObservationNoise
    passes: int
    seed: int
    first_sample: int
    backend: str

    def constraint(self, start: int, stop: int) -> KnownEntries:
        """Return the constraint of chains start … stop - 1."""
        return KnownEntries(self, start, stop)


class Inpainting(ABC):
    """The part of `Sampler` that completes partially known samples."""

    model: CDRL
    source: CDRL | Density
    device: torch.device
    dtype: torch.dtype
    backend: str
    _frozen: FrozenModel

    @abstractmethod
    def _run(self, *args: Any, **options: Any) -> tuple[Tensor, list[Any]]: ...

    def inpaint(
        self,
        images: Tensor,
        known: Tensor,
        *,
        seed: int = 0,
        steps: Steps = None,
        label: Label = None,
        guidance: float = 0.0,
        samples: int = 1,
        first_sample: int = 0,
        batch_size: int | None = None,
        noise: ObservationNoise = "shared",
        passes: int = 1,
        candidates: int = 1,
        denoise_scale: float = 1.0,
        correctors: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Draw the unknown entries of images, or of points, given the known ones.

        The chain is that of `sample`, but the known entries of each state x_t are set to
        √ᾱ_t o + √(1 - ᾱ_t) ε, with o the observation: in x_T, in the proposal of each level and
        after each Langevin step. The draw of x_{t-1} therefore knows x_t and its own known entries,
        but not those of the less noisy levels that follow. So with one pass the samples follow
        p(unknown | known) only roughly. More ``passes`` come closer; in the limit of many passes
        and steps the distribution is exact. More ``candidates`` select the right one of distant
        modes, between which passes hardly move a chain. CUDA graphs are not used.

        Args:
            images: float (n, C, H, W) in [-1, 1], or points (n, dim). Unknown entries are ignored
                and may be NaN.
            known: bool, True where an entry is known. The shape broadcasts to that of ``images``:
                (H, W), (n, 1, H, W), (C, 1, 1) for a mask per channel; (dim,) or (n, dim) for
                points.
            seed: 64-bit integer. The same seed gives the same samples. If nothing is known, one
                pass gives the samples of `sample`.
            steps, guidance, batch_size, denoise_scale, correctors, progress: as in `sample`.
            label: class number or name, one for all images or a sequence of ``n``; None: no class.
            samples: number of completions k of each image.
            first_sample: index of the first completion in the stream of the seed.
            noise: "shared": one ε per completion for all levels, as in training pairs; "fresh": one
                per completion and level.
            passes: number of passes through each level. Before each further pass x_{t-1} is noised
                to x_t. The time grows in proportion.
            candidates: number of completions that are drawn for each one returned. The returned one
                is selected with probability proportional to exp(-Σ_t ‖k_0 - k̂_0(x_t)‖² / (2 v_t)),
                that is, by how well the model predicts the known entries k_0 from noisy ones.
                Without ``label``, if there are at least as many candidates as classes, candidates
                take the classes cyclically; a multiple of the number of classes treats all classes
                alike.

        Returns:
            Float32 (n·k, …), float64 with precision="fp64". Rows i·k … i·k + k - 1 complete image
            i. Their known entries equal those of ``images`` to the bit.

        Raises:
            ValueError, TypeError: an argument has a wrong value or type.
            ChainDiverged: a state became non-finite (NaN or Inf); the step that the error names
                counts through all passes of the level.

        Source: passes: Lugmayr et al., "RePaint", CVPR 2022. Candidates: the weights approximate
        those of Trippe et al., "Diffusion probabilistic modeling of protein backbones in 3D for the
        motif-scaffolding problem", ICLR 2023.

        Examples:
            >>> import torch
            >>> from cdrl_fast import CDRL, Sampler
            >>> sampler = Sampler(CDRL.from_pretrained("digits"))
            >>> known = torch.arange(8)[:, None] < 4  # the upper half
            >>> sampler.inpaint(torch.zeros(2, 1, 8, 8), known, samples=3, steps=1).shape
            torch.Size([6, 1, 8, 8])
        """
        values, mask = self._checked(images, known)
        where = "Sampler.inpaint"
        check_integer(where, "samples", samples, 1, 2**31)
        check_integer(where, "passes", passes, 1, MAX_DRAWS)
        self._check_draws(self.model.plan(steps), passes, correctors)
        if noise not in ("shared", "fresh"):
            raise ValueError(f'noise: expected "shared" or "fresh", got {noise!r}')
        check_integer(where, "candidates", candidates, 1, 2**31)
        indices = self.model.label_indices(label, len(values))
        chains_per_sample = samples * candidates
        if indices is not None:
            indices = indices.expand(len(values)).repeat_interleave(chains_per_sample)
        elif isinstance(self.source, CDRL) and 0 < self.model.num_classes <= candidates != 1:
            classes = cycled_classes(self.model, candidates)
            indices = None if classes is None else classes.repeat(len(values) * samples)
        observation = Observation(
            values,
            mask,
            self.model.schedule,
            chains_per_sample,
            noise,
            passes,
            seed,
            first_sample * candidates,
            self.backend,
        )
        completions = self._run(
            len(values) * chains_per_sample,
            seed=seed,
            steps=steps,
            label=indices,
            guidance=guidance,
            first_sample=first_sample * candidates,
            batch_size=batch_size,
            denoise_scale=denoise_scale,
            correctors=correctors,
            progress=progress,
            observation=observation,
        )[0]
        if candidates == 1:
            return completions
        rng = (seed, first_sample * candidates)
        terms = label_terms(self.source, rng, len(completions), indices, guidance, self.device)
        selector = CandidateSelector(
            self.model.schedule, self._frozen, candidates, seed, first_sample, self.backend
        )
        known = mask.repeat_interleave(chains_per_sample, 0)
        size = 1024 if batch_size is None else batch_size
        return completions[selector.select(completions, known, terms, size)]

    def _check_draws(self, plan: StepPlan, passes: int, correctors: int) -> None:
        draws = passes * max(max(plan.counts) + 1, correctors)
        if draws > MAX_DRAWS:
            raise ValueError(
                f"passes: {passes} passes need {draws} draws of noise per level, at most "
                f"{MAX_DRAWS} are available; use fewer passes, steps or correctors"
            )

    def _checked(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the observed values, 0 where unknown, and the mask; both (n, …) on the device."""
        images = checked_samples("Sampler.inpaint", images, self.model.sample_shape)
        if not isinstance(known, Tensor) or known.dtype != torch.bool:
            kind = known.dtype if isinstance(known, Tensor) else type(known).__name__
            raise TypeError(
                f"known: expected a bool tensor, True where an entry is known, got {kind}; convert "
                "it by a comparison such as mask > 0"
            )
        try:
            mask = known.to(self.device).expand(images.shape)
        except RuntimeError:
            raise ValueError(
                f"known: expected a shape that broadcasts to {tuple(images.shape)}, the shape of "
                f"images, got {tuple(known.shape)}"
            ) from None
        values = images.detach().to(self.device, self.dtype).masked_fill(~mask, 0.0)
        if not values.isfinite().all():
            raise ValueError(
                "images: expected finite known entries, got NaN or infinity among the known "
                "entries; mark these entries as unknown"
            )
        if self.model.is_image and values.numel() and values.abs().max() > 1.0:
            raise ValueError(
                f"images: expected known entries in [-1, 1], got {float(values.min()):.4g} to "
                f"{float(values.max()):.4g}"
            )
        return values, mask
