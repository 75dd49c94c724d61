"""Inpainting: chains whose known entries are set to the observation, noised to each level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.engine import Terms
from cdrl_fast.errors import check_integer
from cdrl_fast.model.schedule import Level, StepPlan
from cdrl_fast.ops.keys import MAX_PROPOSAL_DRAWS, ChainKeys
from cdrl_fast.sampling.candidates import CandidateSelector
from cdrl_fast.sampling.chain import Chain
from cdrl_fast.sampling.hooks import ChainState, Hook
from cdrl_fast.sampling.label_terms import cycled_classes, label_terms
from cdrl_fast.sampling.request import ObservationNoise, SampleRequest
from cdrl_fast.sampling.scoring import checked_samples

if TYPE_CHECKING:
    from cdrl_fast.sampling.sampler import Sampler


@dataclass(frozen=True)
class Inpainting:
    """How known entries enter the chains that complete samples.

    Attributes:
        samples: number of completions of each sample.
        noise: "shared": one ε per chain for all levels, or "fresh": one per chain and level.
        passes: number of passes through each level.
        candidates: number of chains of each completion.

    Raises:
        ValueError, TypeError: a wrong value or type.
    """

    samples: int = 1
    noise: ObservationNoise = "shared"
    passes: int = 1
    candidates: int = 1

    def __post_init__(self) -> None:
        check_integer("Sampler.inpaint", "samples", self.samples, 1, 2**31)
        check_integer("Sampler.inpaint", "passes", self.passes, 1, MAX_PROPOSAL_DRAWS)
        check_integer("Sampler.inpaint", "candidates", self.candidates, 1, 2**31)
        if self.noise not in ("shared", "fresh"):
            raise ValueError(f'noise: expected "shared" or "fresh", got {self.noise!r}')

    @property
    def chains(self) -> int:
        """Number of chains of each sample; they are adjacent."""
        return self.samples * self.candidates


@dataclass
class KnownEntries(Hook):
    """The hook that sets the known entries of every state to scale · (√ᾱ_t o + √(1 - ᾱ_t) ε).

    Attributes:
        chain: the batch of chains, whose keys and networks draw ε.
        values: o, the observation (n, …) of the chains.
        known: bool (n, …), True where an entry is known.
        shared: whether all levels have the same ε.
    """

    chain: Chain
    values: Tensor
    known: Tensor
    shared: bool
    per_step = True
    _noised: tuple[int, Tensor] | None = field(init=False, default=None)

    def started(self, state: ChainState) -> None:
        """Set the known entries of x_T."""
        self._set(state.y, state.level.t, 1.0)

    def proposed(self, state: ChainState) -> None:
        """Set the known entries of a proposal."""
        self._set(state.y, state.level.t - 1, state.scale)

    def stepped(self, state: ChainState) -> None:
        """Set the known entries after a step."""
        self._set(state.y, state.level.t - 1, state.scale)

    def renoised(self, x: Tensor, t: int, pass_index: int) -> Tensor:
        """Return √a_t x_{t-1} + σ_t z with a_t = ᾱ_t / ᾱ_{t-1}, known entries included."""
        alpha_bar = self.chain.model.schedule.alpha_bar
        ratio = alpha_bar[t] / alpha_bar[t - 1]
        noise = self.chain.keys.renoise(t, pass_index).normal(x.shape, **self.chain.networks.noise)
        return float(np.sqrt(ratio)) * x + float(np.sqrt(1.0 - ratio)) * noise

    def _set(self, y: Tensor, t: int, scale: float) -> None:
        if self._noised is None or self._noised[0] != t:
            key = self.chain.keys.known(t, shared=self.shared)
            noise = key.normal(y.shape, **self.chain.networks.noise)
            self._noised = t, self.chain.model.schedule.add_noise(self.values, noise, t)
        torch.where(self.known, scale * self._noised[1], y, out=y)


@dataclass
class RePaint(Chain):
    """Chains with known entries, which can go through each level several times.

    Before each further pass x_{t-1} is noised to x_t again.

    Attributes:
        values, known: the observation (N, …) of all samples of a request, and where it is known.
        first_chain: index in the noise stream of the first of all chains.
        options: how the known entries enter.

    Source: Lugmayr et al., "RePaint", CVPR 2022.
    """

    values: Tensor = field(kw_only=True)
    known: Tensor = field(kw_only=True)
    first_chain: int = field(kw_only=True)
    options: Inpainting = field(kw_only=True)

    @property
    def passes(self) -> int:
        """Number of passes through each level."""
        return self.options.passes

    def run(self, n: int, plan: StepPlan, terms: Sequence[Terms]) -> Tensor:
        """Return the states x_0 of n chains; see `Chain.run`."""
        start = int(self.keys.first_sample) - self.first_chain
        rows = torch.arange(start, start + n, device=self.values.device) // self.options.chains
        shared = self.options.noise == "shared"
        self._entries = KnownEntries(self, self.values[rows], self.known[rows], shared)
        self.hooks = (self._entries, *self.hooks)
        return super().run(n, plan, terms)

    def level(self, x: Tensor, level: Level, terms: Sequence[Terms], pass_index: int = 0) -> Tensor:
        """Return x_{t-1} from x_t, after all passes through the level."""
        for pass_index in range(self.passes):
            x = self._entries.renoised(x, level.t, pass_index) if pass_index else x
            x = super().level(x, level, terms, pass_index)
        return x

    def denoise(self, x: Tensor, scale: float) -> Tensor:
        """Return the samples, whose known entries are the observation without noise."""
        return torch.where(self._entries.known, self._entries.values, super().denoise(x, scale))


def inpaint(
    sampler: Sampler, images: Tensor, known: Tensor, request: SampleRequest, options: Inpainting
) -> Tensor:
    """Return completions of images; see `Sampler.inpaint`.

    Args:
        sampler: draws the completions.
        images, known: as in `Sampler.inpaint`.
        request: seed, steps, label, …; its ``n`` is not used.
        options: samples, noise, passes and candidates.
    """
    values, mask = _checked(sampler, images, known)
    if request.metropolis:
        raise ValueError(
            "metropolis: known entries change the states between steps, which an adjusted chain "
            "does not allow; leave metropolis out"
        )
    _check_draws(sampler.model.plan(request.steps), options.passes, request.correctors)
    indices = sampler.model.label_indices(request.label, len(values))
    classes = sampler.model.num_classes
    if indices is not None:
        indices = indices.expand(len(values)).repeat_interleave(options.chains)
    elif sampler.source.takes_labels and 0 < classes <= options.candidates != 1:
        cycle = cycled_classes(sampler.model, options.candidates)
        indices = None if cycle is None else cycle.repeat(len(values) * options.samples)
    first_chain = request.first_sample * options.candidates
    chains = replace(
        request, n=len(values) * options.chains, first_sample=first_chain, label=indices
    )
    repaint = partial(RePaint, values=values, known=mask, first_chain=first_chain, options=options)
    completions = sampler.run(chains, chain=repaint)
    if options.candidates == 1:
        return completions
    keys = ChainKeys(request.seed, request.first_sample, sampler.model.schedule.levels)
    selector = CandidateSelector(sampler.model.schedule, sampler.networks, options.candidates, keys)
    known = mask.repeat_interleave(options.chains, 0)
    with sampler.networks.in_use():
        terms = label_terms(sampler.source, chains, sampler.device)
        return completions[selector.select(completions, known, terms, chains)]


def _check_draws(plan: StepPlan, passes: int, correctors: int) -> None:
    draws = passes * max(max(plan.counts) + 1, correctors)
    if draws > MAX_PROPOSAL_DRAWS:
        raise ValueError(
            f"passes: {passes} passes need {draws} draws of noise per level, at most "
            f"{MAX_PROPOSAL_DRAWS} are available; use fewer passes, steps or correctors"
        )


def _checked(sampler: Sampler, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the observed values, 0 where unknown, and the mask; both (n, …) on the device."""
    images = checked_samples("Sampler.inpaint", images, sampler.model.sample_shape)
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        kind = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise TypeError(
            f"known: expected a bool tensor, True where an entry is known, got {kind}; convert "
            "it by a comparison such as mask > 0"
        )
    try:
        mask = known.to(sampler.device).expand(images.shape)
    except RuntimeError:
        raise ValueError(
            f"known: expected a shape that broadcasts to {tuple(images.shape)}, the shape of "
            f"images, got {tuple(known.shape)}"
        ) from None
    values = images.detach().to(sampler.device, sampler.dtype).masked_fill(~mask, 0.0)
    if not values.isfinite().all():
        raise ValueError(
            "images: expected finite known entries, got NaN or infinity among the known "
            "entries; mark these entries as unknown"
        )
    if sampler.model.is_image and values.numel() and values.abs().max() > 1.0:
        raise ValueError(
            f"images: expected known entries in [-1, 1], got {float(values.min()):.4g} to "
            f"{float(values.max()):.4g}"
        )
    return values, mask
