"""Selection among several completions, by how well the model predicts the known entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine import FrozenModel, Terms
from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.ops.keys import ChainKeys
from cdrl_fast.sampling.request import SampleRequest

_NOISES_PER_LEVEL = 8
"""Noise samples per level over which errors are averaged; each is used with both signs."""


@dataclass(frozen=True)
class CandidateSelector:
    """A selector of one of every ``candidates`` completions of an observation.

    A chain with fixed known entries sets those of x_{t-1} to the noised observation, whether or not
    x_t makes them likely. Weighting chains by Π_t p(k_{t-1} | x_t), with k the known entries,
    corrects this. Here p is a Gaussian around the model's own estimate of x_0,
    √ᾱ_t x̂_0 = x_t + (1 - ᾱ_t) ∇ log p(x_t), and all levels have the same weight:

        w = exp(-Σ_t ‖k_0 - k̂_0(x_t)‖² / (2 v_t)),    t = 1 … T - 1.

    x_t is the completion with noise; errors are averaged over a few noise samples, the same ones
    for all candidates; v_t is the mean squared error over all candidates and entries.

    These weights are sharper than p(k_{t-1} | x_t), in which level t would count by the factor
    (1 - ρ) v_t / ((1 - ρ) v_t + n_{t-1}), with n_t = (1 - ᾱ_t) / ᾱ_t and ρ = n_{t-1} / n_t. With
    the factors the conditional mean of a Gaussian is exact, without them it is overshot. But
    completed digits are recognised more often without them: 89 % against 87 % for lower halves and
    72 % against 67 % with a quarter of the pixels known, with ten candidates.

    Attributes:
        schedule: the noise schedule.
        networks: the networks.
        candidates: number of completions from which one is selected.
        keys: the random numbers, one sample per selected completion.

    Source: weights of chains: Trippe et al., ICLR 2023 (SMCDiff); equal weights of levels: Li et
    al., "Your diffusion model is secretly a zero-shot classifier", ICCV 2023; the estimate of x_0
    is Tweedie's formula.
    """

    schedule: NoiseSchedule
    networks: FrozenModel
    candidates: int
    keys: ChainKeys

    def select(
        self, samples: Tensor, known: Tensor, terms: Sequence[Terms], request: SampleRequest
    ) -> Tensor:
        """Draw one sample of each group of candidates in proportion to their weights.

        Args:
            samples: (n·candidates, …); the candidates of a group are adjacent.
            known: bool, of the samples' shape.
            terms: the networks' terms for these samples.
            request: the request of all candidates, whose batch size limits the memory.

        Returns:
            Indices (n,) of the selected samples, int64.
        """
        count = self.candidates
        groups = len(samples) // count
        size = max(1, request.largest_batch // count)
        log_weights = [
            self._log_weights(samples, known, terms, start, min(start + size, groups))
            for start in range(0, max(groups, 1), size)
        ]
        u = self.keys.selection().uniform((groups, count))
        # The argmax of log w + Gumbel noise is distributed in proportion to w; u is in (0, 1].
        gumbel = -torch.log(-torch.log(u.double().clamp_max(1 - 2.0**-33)))
        selected = (torch.cat(log_weights).cpu() + gumbel).argmax(dim=1)
        return (torch.arange(groups) * count + selected).to(samples.device)

    def _log_weights(
        self, samples: Tensor, known: Tensor, terms: Sequence[Terms], start: int, stop: int
    ) -> Tensor:
        """Return log w of groups start … stop - 1, (stop - start, candidates), float64."""
        count = self.candidates
        rows = slice(start * count, stop * count)
        x0, mask = samples[rows], known[rows]
        batch_terms = [network_terms.slice(rows.start, rows.stop) for network_terms in terms]
        log_weights = torch.zeros(stop - start, count, dtype=torch.float64, device=x0.device)
        for t in range(1, self.schedule.levels):
            squares = self._squared_errors(x0, t, batch_terms, start).double().flatten(1)
            variance = squares.mean(dim=1).view(-1, count).mean(dim=1, keepdim=True)
            errors = (squares * mask.flatten(1)).sum(dim=1).view(-1, count)
            log_weights -= errors / (2.0 * variance.clamp_min(1e-30))
        return log_weights

    def _squared_errors(self, x0: Tensor, t: int, terms: Sequence[Terms], start: int) -> Tensor:
        """Return (x_0 - x̂_0(x_t))² of each entry, averaged over noise samples."""
        # Level t + 1 is the one whose energy is the density of x_t.
        level = self.schedule.level(t + 1)
        energy = self.networks.at(level.logsnr, terms)
        variance = float(self.schedule.noise_variance[t])
        signal = float(self.schedule.alpha_bar[t]) ** 0.5
        total = torch.zeros_like(x0)
        for index in range(_NOISES_PER_LEVEL):
            key = self.keys.weighting(t, index).skip(start)
            noise = key.normal(
                (len(x0) // self.candidates, *x0.shape[1:]), **self.networks.noise
            ).repeat_interleave(self.candidates, 0)
            for signed_noise in (noise, -noise):
                x = self.schedule.add_noise(x0, signed_noise, t)
                score = energy.gradient(level.scale * x) * (level.scale / level.energy_variance)
                total += (x0 - (x + variance * score) / signal).square()
        return total / (2 * _NOISES_PER_LEVEL)
