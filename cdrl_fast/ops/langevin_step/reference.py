"""Reference of `langevin_step`, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_fast.ops.coefficients import Coefficient
from cdrl_fast.ops.normal.reference import normal


def langevin_step(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    coefficients: Sequence[Coefficient],
    rng: tuple[int, int, int] | Tensor,
    first_bad: Tensor | None,
) -> Tensor:
    """Return rescale·(x + drift·grad - pull·(x - anchor) + noise_std·z), a new tensor.

    Args:
        coefficients: drift, pull, noise_std, rescale.
        rng: (seed, draw, first_sample), or an `rng_state`, whose draw is increased by one.
        first_bad: lowered to `first_non_finite` of the result.
    """
    drift, pull, noise_std, rescale = (_per_sample(c, x) for c in coefficients)
    seed, draw, first_sample = rng[:3].tolist() if isinstance(rng, Tensor) else rng
    position = {"seed": seed, "draw": draw, "first_sample": first_sample}
    z = normal(x.shape, device=x.device, dtype=x.dtype, **position)
    y = x + drift * grad.to(x.dtype)
    if anchor is not None:
        y = y - pull * (x - anchor)
    y = rescale * (y + noise_std * z)
    if first_bad is not None and x.shape[0]:
        first_bad.copy_(torch.minimum(first_bad, first_non_finite(y.detach(), draw)))
    if isinstance(rng, Tensor):
        rng[1] += 1
    return y


def first_non_finite(y: Tensor, draw: int) -> Tensor:
    """Return draw·2³¹ + index of the first non-finite sample, or 2⁶³ - 1 if none; int64 ()."""
    bad = ~torch.isfinite(y).flatten(1).all(dim=1)
    index = torch.arange(y.shape[0], device=y.device)
    never = torch.full_like(index, 2**63 - 1)
    return torch.where(bad, index + (draw << 31), never).min()


def _per_sample(value: Coefficient, x: Tensor) -> Coefficient:
    if isinstance(value, Tensor) and value.dim():
        return value.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return value
