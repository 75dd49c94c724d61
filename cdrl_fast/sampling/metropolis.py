"""Metropolis-adjusted Langevin steps: what a proposal's acceptance is, and keeping to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast.ops import langevin_step
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.philox import uniform

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
Place = tuple[int, int, int]
"""In the noise stream: seed, draw, first sample."""


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
    noise: Callable[[int], Place],
    acceptance: Callable[[int], Place],
    first_bad: Tensor | None = None,
    adjust: bool = True,
    rescale: float = 1.0,
    backend: str = "auto",
    each: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Langevin steps of y in place, each accepted with the probability that keeps π as it is.

    With s = noise_std the step y' = y + D(y) + s z, D = drift ∇f(y) - pull (y - anchor), has
    log π = (2 drift f - pull ‖y - anchor‖²) / s² as its density, and is accepted with probability
    min(1, π(y') q(y|y') / π(y) q(y'|y)), whose logarithm is

        [2 drift (f' - f) - pull Δ·(y' + y - 2 anchor) - (D + D')·Δ + (‖D‖² - ‖D'‖²) / 2] / s²

    with Δ = y' - y; written so that nothing large cancels.

    Args:
        value_and_gradient: f (batch,) and ∇f of a state; one call a step.
        y: (batch, …).
        anchor: of the recovery term, or None; then ``pull`` is 0.
        noise, acceptance: of step k = 1 … steps, places in the noise stream.
        first_bad: as in `langevin_step`; a start whose energy or gradient is not finite counts as
            the first step's.
        adjust: whether refused proposals are thrown away; otherwise the probability is only told.
        rescale: multiplies y after the last step.
        each: called after each step.

    Returns:
        Probabilities of acceptance, float64 (steps, batch).

    Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions", 1996.
    """
    anchor = None if pull == 0.0 else anchor

    def moved(state: Tensor, gradient: Tensor) -> Tensor:
        d = drift * gradient.double()
        return d if anchor is None else d - pull * (state.double() - anchor.double())

    value, gradient = value_and_gradient(y)
    if first_bad is not None:
        # From where nothing is known, each proposal would be refused.
        known = value.isfinite() & gradient.isfinite().flatten(1).all(dim=1)
        place = (noise(1)[1] << 31) + torch.arange(len(y), device=y.device)
        codes = torch.where(known, torch.full_like(place, NEVER), place)
        first_bad.copy_(torch.cat([codes, first_bad.reshape(1)]).min())
    value, gradient, now = value.double(), gradient.clone(), moved(y, gradient)
    found = torch.ones((steps, len(y)), dtype=torch.float64, device=y.device)
    for k in range(1, steps + 1):
        new = langevin_step(
            y,
            gradient,
            anchor,
            drift=drift,
            pull=pull,
            noise_std=noise_std,
            rng=noise(k),
            # A refused proposal is no harm.
            first_bad=None if adjust else first_bad,
            backend=backend,
        )
        new_value, new_gradient = value_and_gradient(new)
        new_value, then = new_value.double(), moved(new, new_gradient)
        step = new.double() - y.double()
        change = -(now + then) * step + 0.5 * (now.square() - then.square())
        if anchor is not None:
            change -= pull * step * (new.double() + y.double() - 2 * anchor.double())
        ratio = (2 * drift * (new_value - value) + change.flatten(1).sum(dim=1)) / noise_std**2
        # What is not a number is no place to go to.
        found[k - 1] = ratio.clamp_max(0.0).exp().nan_to_num(0.0)
        if adjust:
            seed, draw, first = acceptance(k)
            u = uniform((len(y), 1), seed=seed, draw=draw, first_sample=first, device=y.device)
            kept = u[:, 0].double() <= found[k - 1]
            mask = kept.view(-1, *[1] * (y.dim() - 1))
            y.copy_(torch.where(mask, new, y))
            gradient = torch.where(mask, new_gradient, gradient)
            value, now = torch.where(kept, new_value, value), torch.where(mask, then, now)
        else:
            y.copy_(new)
            gradient, value, now = new_gradient.clone(), new_value, then
        if k == steps and rescale != 1.0:
            y.mul_(rescale)
        each(k)
    return found
