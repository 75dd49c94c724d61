"""Transitions: how a chain takes the steps of a phase, unadjusted (ULA) or adjusted (MALA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine import Context, EnergyAt, take_steps
from cdrl_fast.ops import langevin_step
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.phase import Phase

Transition = Callable[[EnergyAt, Tensor, Tensor | None, Phase, Context], None]
"""A function that takes the Langevin steps of a phase, in place: of an energy, the states y, x_t of
the recovery term or None, the phase, and what else its steps need."""


def unadjusted(
    energy: EnergyAt, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context
) -> None:
    """Take every step as it is (ULA), by the energy's own kernels."""
    energy.langevin_(y, anchor, phase, context)


@dataclass(frozen=True)
class Adjusted:
    """Langevin steps, each with a Metropolis test that leaves π invariant (MALA).

    A step proposes y' = y + D(y) + s z with s = noise_std, D = drift ∇f(y) - pull (y - anchor).
    The proposal targets log π = (2 drift f - pull ‖y - anchor‖²) / s², and is accepted with
    probability min(1, π(y') q(y|y') / π(y) q(y'|y)). The logarithm of this ratio is

        [2 drift (f' - f) - pull Δ·(y' + y - 2 anchor) - (D + D')·Δ + (‖D‖² - ‖D'‖²) / 2] / s²

    with Δ = y' - y. In this form no large terms cancel.

    Attributes:
        reject: whether rejected proposals are discarded; otherwise every proposal is accepted and
            its acceptance probability only computed.
        record: called after a phase with the acceptance probabilities, float64 (steps, batch).

    Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions", 1996.
    """

    reject: bool = True
    record: Callable[[Tensor], None] | None = None

    def __call__(
        self, energy: EnergyAt, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context
    ) -> None:
        """Take the steps of y in place; arguments as `EnergyAt.langevin_`.

        The energy computes value and gradient once per step and once for the initial state. An
        initial state whose energy or gradient is non-finite is reported as step 1.
        """
        first_bad = context.first_bad
        drift, pull, noise_std = phase.drift, phase.pull, phase.noise_std

        def displacement_of(state: Tensor, gradient: Tensor) -> Tensor:
            d = drift * gradient.double()
            return d if anchor is None else d - pull * (state.double() - anchor.double())

        value, gradient = energy.value_and_gradient(y)
        # A non-finite initial state would reject every proposal without an error.
        finite = value.isfinite() & gradient.isfinite().flatten(1).all(dim=1)
        codes = ((phase.key + 1).draw << 31) + torch.arange(len(y), device=y.device)
        codes = torch.where(finite, torch.full_like(codes, NEVER), codes)
        first_bad.copy_(torch.cat([codes, first_bad.reshape(1)]).min())
        value, displacement = value.double(), displacement_of(y, gradient)
        gradient = gradient.clone()
        probabilities = torch.ones((phase.steps, len(y)), dtype=torch.float64, device=y.device)

        def step(k: int) -> None:
            nonlocal value, gradient, displacement
            key = phase.key + k
            new = langevin_step(
                y,
                gradient,
                anchor,
                drift=drift,
                pull=pull,
                noise_std=noise_std,
                rng=key.rng(),
                # A non-finite proposal is rejected by the test, so the chain stays finite.
                first_bad=None if self.reject else first_bad,
                backend=context.backend,
            )
            new_value, new_gradient = energy.value_and_gradient(new)
            new_value, new_displacement = new_value.double(), displacement_of(new, new_gradient)
            delta = new.double() - y.double()
            terms = -(displacement + new_displacement) * delta
            terms = terms + 0.5 * (displacement.square() - new_displacement.square())
            if anchor is not None:
                terms -= pull * delta * (new.double() + y.double() - 2 * anchor.double())
            ratio = (2 * drift * (new_value - value) + terms.flatten(1).sum(dim=1)) / noise_std**2
            # A proposal whose ratio is NaN is never accepted.
            probabilities[k - 1] = ratio.clamp_max(0.0).exp().nan_to_num(0.0)
            accepted = torch.ones_like(ratio, dtype=torch.bool)
            if self.reject:
                u = key.acceptance.uniform((len(y), 1), device=y.device)
                accepted = u[:, 0].double() <= probabilities[k - 1]
            mask = accepted.view(-1, *[1] * (y.dim() - 1))
            y.copy_(torch.where(mask, new, y))
            gradient = torch.where(mask, new_gradient, gradient)
            value = torch.where(accepted, new_value, value)
            displacement = torch.where(mask, new_displacement, displacement)
            if k == phase.steps and phase.rescale != 1.0:
                y.mul_(phase.rescale)

        take_steps(step, phase.steps, context)
        if self.record is not None:
            self.record(probabilities)
