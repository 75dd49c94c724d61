"""Inpainting: chains whose known entries are held at the observation, noised to each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.schedule import NoiseSchedule, StepPlan, Steps
from cdrl_fast.ops import normal
from cdrl_fast.ops.philox import Purpose, check_integer, level_draw
from cdrl_fast.sampling.candidates import Choice
from cdrl_fast.sampling.label_terms import cycled_classes, label_terms
from cdrl_fast.sampling.scoring import checked_samples

ObservationNoise = Literal["shared", "fresh"]
# Of a level's 2^16 draws all passes' steps have one half and their correctors the other.
MOST_DRAWS = 2**15


class Unconstrained:
    """Chains of which nothing is known."""

    passes = 1

    def __call__(self, state: Tensor, t: int, scale: float = 1.0) -> None:
        """Sets the known entries of scale · x_t."""

    def noised_again(self, x: Tensor, t: int, turn: int) -> Tensor:
        """x_t from x_{t-1}, for the next pass through level t; the first one's turn is 0."""
        raise AssertionError("there is one pass")

    def finish(self, samples: Tensor) -> Tensor:
        """The samples with what is known in its place."""
        return samples


UNCONSTRAINED = Unconstrained()


class KnownEntries(Unconstrained):
    """A batch of chains whose known entries are held.

    Args:
        of: all chains' observations.
        start, stop: which of them.
    """

    def __init__(self, of: Observation, start: int, stop: int) -> None:
        rows = torch.arange(start, stop, device=of.values.device) // of.copies
        self.passes, self._of, self._schedule = of.passes, of, of.schedule
        self._values, self._known = of.values[rows], of.known[rows]
        self._first_sample = of.first_sample + start
        self._current: tuple[int, Tensor] | None = None

    def __call__(self, state: Tensor, t: int, scale: float = 1.0) -> None:
        """Sets the known entries to scale · (√ᾱ_t o + √(1 - ᾱ_t) ε)."""
        if self._current is None or self._current[0] != t:
            self._current = (t, self._noised(t))
        torch.where(self._known, scale * self._current[1], state, out=state)

    def noised_again(self, x: Tensor, t: int, turn: int) -> Tensor:
        """√a_t x_{t-1} + σ_t z, known entries included."""
        ratio = self._schedule.alpha_bar[t] / self._schedule.alpha_bar[t - 1]
        # A level's first index is for the noise of its known entries.
        noise = self._normal(level_draw(t, self._schedule.levels) + turn)
        return float(np.sqrt(ratio)) * x + float(np.sqrt(1.0 - ratio)) * noise

    def finish(self, samples: Tensor) -> Tensor:
        """The samples with the observation itself in the known entries."""
        return torch.where(self._known, self._values, samples)

    def _noised(self, t: int) -> Tensor:
        schedule = self._schedule
        # x_T belongs to a level T + 1, whose index is 0: that of the one shared noise, too.
        index = level_draw(t + 1, schedule.levels) if self._of.noise == "fresh" else 0
        return schedule.add_noise(self._values, self._normal(index), t)

    def _normal(self, index: int) -> Tensor:
        return normal(
            self._values.shape,
            seed=self._of.seed,
            draw=Purpose.INPAINTING.draw(index),
            first_sample=self._first_sample,
            device=self._values.device,
            dtype=self._values.dtype,
            backend=self._of.backend,
        )


@dataclass(frozen=True)
class Observation:
    """What is known of each sample, and how chains are held at it.

    Attributes:
        values: (n, …), finite everywhere.
        known: bool, of the same shape: True is kept.
        schedule: the noise schedule.
        copies: chains of each observation, one after the other.
        noise: "shared", one ε a chain for all levels, or "fresh", one a level.
        passes: through each level.
        seed, first_sample: of the first chain in the noise stream.
        backend: the room that draws the noise.
    """

    values: Tensor
    known: Tensor
    schedule: NoiseSchedule
    copies: int
    noise: ObservationNoise
    passes: int
    seed: int
    first_sample: int
    backend: str

    def of_chains(self, start: int, stop: int) -> KnownEntries:
        """What holds chains start … stop - 1."""
        return KnownEntries(self, start, stop)


class Inpainting(ABC):
    """The part of `Sampler` that completes samples of which some entries are known."""

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
        """Draws the unknown entries of images, or of points, given the known ones.

        The chain of `sample`, with the known entries of every state x_t set to
        √ᾱ_t o + √(1 - ᾱ_t) ε: in x_T, in each level's proposal and after each Langevin step. So
        x_{t-1} is drawn given x_t and its own known entries, but not given those of the cleaner
        levels to come: with one pass the samples follow p(unknown | known) only roughly. More
        passes come closer, to that distribution itself in the limit of many passes and steps.
        Candidates find the right one of far-apart modes, which passes hardly move between.

        Args:
            images: (n, C, H, W) in [-1, 1], or points (n, dim). Unknown entries are not used and
                may be NaN.
            known: bool, True where an entry is kept: broadcastable to ``images``, so (H, W),
                (n, 1, H, W), one a channel, or for points (dim,) and (n, dim).
            seed: 64-bit integer; the same seed gives the same samples. With nothing known and one
                pass they are those of `sample`.
            steps, guidance, batch_size, denoise_scale, correctors, progress: as in `sample`.
            label: None, or a class number or name for all images, or ``n`` of them.
            samples: k, completions of each image.
            first_sample: index of the first completion in the seed's stream.
            noise: "shared", one ε a completion for all levels, as training pairs have it; or
                "fresh", one a level.
            passes: how often each level is gone through. Before each further time x_{t-1} is noised
                to x_t again. Costs as many times the steps.
            candidates: completions drawn for each one returned, which is kept in proportion to
                exp(-Σ_t ‖k_0 - k̂_0(x_t)‖² / (2 v_t)): how well the model tells the known entries
                k_0 from noised ones. Without a label they are of a model's classes in turn, if
                there are as many as classes; a multiple of them counts all classes alike.

        Returns:
            (n·k, …): rows i·k … i·k + k - 1 complete image i. In known entries they equal
            ``images`` bit for bit, in float32 (float64 with precision="fp64"). CUDA graphs are
            not used here.

        Raises:
            ValueError, TypeError: an argument that does not fit.
            ChainDiverged: a state left the finite numbers; its step counts through all passes.

        Source: the passes are those of Lugmayr et al., "RePaint", CVPR 2022; the candidates'
        weights approximate those of Trippe et al., "Diffusion probabilistic modeling of protein
        backbones in 3D for the motif-scaffolding problem", ICLR 2023.

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
        check_integer(where, "passes", passes, 1, MOST_DRAWS)
        self._check_draws(self.model.plan(steps), passes, correctors)
        if noise not in ("shared", "fresh"):
            raise ValueError(f'noise: expected "shared" or "fresh", got {noise!r}')
        check_integer(where, "candidates", candidates, 1, 2**31)
        indices = self.model.label_indices(label, len(values))
        copies = samples * candidates
        if indices is not None:
            indices = indices.expand(len(values)).repeat_interleave(copies)
        elif isinstance(self.source, CDRL) and 0 < self.model.num_classes <= candidates != 1:
            in_turn = cycled_classes(self.model, candidates)
            indices = None if in_turn is None else in_turn.repeat(len(values) * samples)
        held = Observation(
            values,
            mask,
            self.model.schedule,
            copies,
            noise,
            passes,
            seed,
            first_sample * candidates,
            self.backend,
        )
        found = self._run(
            len(values) * copies,
            seed=seed,
            steps=steps,
            label=indices,
            guidance=guidance,
            first_sample=first_sample * candidates,
            batch_size=batch_size,
            denoise_scale=denoise_scale,
            correctors=correctors,
            progress=progress,
            held=held,
        )[0]
        if candidates == 1:
            return found
        rng = (seed, first_sample * candidates)
        terms = label_terms(self.source, rng, len(found), indices, guidance, self.device)
        choice = Choice(
            self.model.schedule, self._frozen, candidates, seed, first_sample, self.backend
        )
        known = mask.repeat_interleave(copies, 0)
        return found[choice.kept(found, known, terms, 1024 if batch_size is None else batch_size)]

    def _check_draws(self, plan: StepPlan, passes: int, correctors: int) -> None:
        draws = passes * max(max(plan.counts) + 1, correctors)
        if draws > MOST_DRAWS:
            raise ValueError(
                f"passes: {passes} passes need {draws} draws of noise a level, and there are "
                f"{MOST_DRAWS}; take fewer passes, steps or correctors"
            )

    def _checked(self, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The observed values, 0 where unknown, and the mask, both (n, …) on the device."""
        images = checked_samples("Sampler.inpaint", images, self.model.sample_shape)
        if not isinstance(known, Tensor) or known.dtype != torch.bool:
            kind = known.dtype if isinstance(known, Tensor) else type(known).__name__
            raise TypeError(
                f"known: expected a bool tensor, True where an entry is kept, got {kind}; compare, "
                "as in mask > 0"
            )
        try:
            mask = known.to(self.device).expand(images.shape)
        except RuntimeError:
            raise ValueError(
                f"known: expected a shape that broadcasts to images' {tuple(images.shape)}, got "
                f"{tuple(known.shape)}"
            ) from None
        values = images.detach().to(self.device, self.dtype).masked_fill(~mask, 0.0)
        if not values.isfinite().all():
            raise ValueError("images: NaN or infinity among the known entries")
        if self.model.is_image and values.numel() and values.abs().max() > 1.0:
            raise ValueError(
                f"images: expected known entries in [-1, 1], got {float(values.min()):.4g} to "
                f"{float(values.max()):.4g}"
            )
        return values, mask
