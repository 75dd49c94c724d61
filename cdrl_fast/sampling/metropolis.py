"""Metropolis-adjusted Langevin steps (MALA) and their acceptance probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast.ops import langevin_step
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import uniform

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
StreamPosition = tuple[int, int, int]
"""A position in the noise stream: seed, draw, index of the first sample."""


@torch.no_grad()
def adjusted_steps_(
    value_and_gradient: ValueAndGradient,
    y: Tensor,
    anchor: Tensor | None,
    *,
    steps: int,
    drift: float,
    pull: float,
    noise_std: float,
    noise: Callable[[int], StreamPosition],
    acceptance: Callable[[int], StreamPosition],
    first_bad: Tensor | None = None,
    adjust: bool = True,
    rescale: float = 1.0,
    backend: str = "auto",
    after_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Take Langevin steps of y in place, each with a Metropolis test that leaves π invariant.

    A step proposes y' = y + D(y) + s z with s = noise_std, D = drift ∇f(y) - pull (y - anchor).
    The proposal targets log π = (2 drift f - pull ‖y - anchor‖²) / s², and is accepted with
    probability min(1, π(y') q(y|y') / π(y) q(y'|y)). The logarithm of this ratio is

        [2 drift (f' - f) - pull Δ·(y' + y - 2 anchor) - (D + D')·Δ + (‖D‖² - ‖D'‖²) / 2] / s²

    with Δ = y' - y. In this form no large terms cancel.

    Args:
        value_and_gradient: returns f (batch,) and ∇f of a state; called once per step and once
            for the initial state.
        y: states (batch, …).
        steps: number of steps.
        drift, pull, noise_std: coefficients of the step.
        anchor: anchor of the recovery term, or None without one; then ``pull`` is 0.
        noise, acceptance: return the stream position of the noise, and of the test's uniform
            numbers, of step k = 1 … steps.
        first_bad: as in `langevin_step`. An initial state whose energy or gradient is non-finite
            is reported as step 1.
        adjust: whether rejected proposals are discarded; otherwise every proposal is accepted and
            its acceptance probability only computed.
        rescale: factor of y after the last step.
        backend: implementation of the step, as in `langevin_step`.
        after_step: called with k after step k.

    Returns:
        Acceptance probabilities, float64 (steps, batch).

    Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions", 1996.
    """
    anchor = None if pull == 0.0 else anchor

    def displacement_of(state: Tensor, gradient: Tensor) -> Tensor:
        d = drift * gradient.double()
        return d if anchor is None else d - pull * (state.double() - anchor.double())

    value, gradient = value_and_gradient(y)
    if first_bad is not None:
        # A non-finite initial state would reject every proposal without an error.
        finite = value.isfinite() & gradient.isfinite().flatten(1).all(dim=1)
        codes = (noise(1)[1] << 31) + torch.arange(len(y), device=y.device)
        codes = torch.where(finite, torch.full_like(codes, NEVER), codes)
        first_bad.copy_(torch.cat([codes, first_bad.reshape(1)]).min())
    value, gradient, displacement = value.double(), gradient.clone(), displacement_of(y, gradient)
    probabilities = torch.ones((steps, len(y)), dtype=torch.float64, device=y.device)
    for k in range(1, steps + 1):
        new = langevin_step(
            y,
            gradient,
            anchor,
            drift=drift,
            pull=pull,
            noise_std=noise_std,
            rng=noise(k),
            # A non-finite proposal is rejected by the test, so the chain stays finite.
            first_bad=None if adjust else first_bad,
            backend=backend,
        )
        new_value, new_gradient = value_and_gradient(new)
        new_value, new_displacement = new_value.double(), displacement_of(new, new_gradient)
        delta = new.double() - y.double()
        terms = -(displacement + new_displacement) * delta
        terms = terms + 0.5 * (displacement.square() - new_displacement.square())
        if anchor is not None:
            terms -= pull * delta * (new.double() + y.double() - 2 * anchor.double())
        log_ratio = (2 * drift * (new_value - value) + terms.flatten(1).sum(dim=1)) / noise_std**2
        # A proposal whose ratio is NaN is never accepted.
        probabilities[k - 1] = log_ratio.clamp_max(0.0).exp().nan_to_num(0.0)
        if adjust:
            seed, draw, first_sample = acceptance(k)
            u = uniform(
                (len(y), 1), seed=seed, draw=draw, first_sample=first_sample, device=y.device
            )
            accepted = u[:, 0].double() <= probabilities[k - 1]
            mask = accepted.view(-1, *[1] * (y.dim() - 1))
            y.copy_(torch.where(mask, new, y))
            gradient = torch.where(mask, new_gradient, gradient)
            value = torch.where(accepted, new_value, value)
            displacement = torch.where(mask, new_displacement, displacement)
        else:
            y.copy_(new)
            gradient, value, displacement = new_gradient.clone(), new_value, new_displacement
        if k == steps and rescale != 1.0:
            y.mul_(rescale)
        after_step(k)
    return probabilities
