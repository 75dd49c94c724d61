"""The meaning of `langevin_step`, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.normal.reference import normal

Coefficient = float | Tensor


def langevin_step(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    *,
    drift: Coefficient,
    pull: Coefficient,
    noise_std: Coefficient,
    seed: int,
    draw: int,
    first_sample: int,
    rescale: Coefficient,
) -> Tensor:
    """rescale·(x + drift·grad - pull·(x - anchor) + noise_std·z); a new tensor."""
    noise = normal(
        x.shape, seed=seed, draw=draw, first_sample=first_sample, device=x.device, dtype=x.dtype
    )
    y = x + _per_sample(drift, x) * grad.to(x.dtype)
    if anchor is not None:
        y = y - _per_sample(pull, x) * (x - anchor)
    return _per_sample(rescale, x) * (y + _per_sample(noise_std, x) * noise)


def first_non_finite(y: Tensor, draw: int) -> Tensor:
    """draw·2³¹ + position of the first sample with a non-finite element, or 2⁶³ - 1; int64 ()."""
    bad = ~torch.isfinite(y).flatten(1).all(dim=1)
    position = torch.arange(y.shape[0], device=y.device)
    none = torch.full_like(position, 2**63 - 1)
    return torch.where(bad, position + (draw << 31), none).min()


def _per_sample(value: Coefficient, x: Tensor) -> Coefficient:
    if isinstance(value, Tensor) and value.dim():
        return value.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return value
