"""Reference of `norm_silu` in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.layout import sum_dtype

EPSILON = 1e-6
"""ε of the group norm."""


def groups(channels: int) -> int:
    """Return the number of groups, gcd(32, channels)."""
    return math.gcd(32, channels)


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    row: Tensor | None,
    activate: bool,
    out: Tensor,
) -> None:
    """Write silu(norm(x + offset)·(1 + scale) + shift) into ``out``."""
    h = x.to(sum_dtype(x.dtype))
    h = h if offset is None else h + offset
    h = torch.group_norm(h.permute(0, 3, 1, 2), groups(x.shape[3]), weight, bias, EPSILON)
    h = h.permute(0, 2, 3, 1)
    if row is not None:
        scale, shift = row[:, None, None].chunk(2, dim=3)
        h = h * (1 + scale) + shift
    out.copy_(F.silu(h) if activate else h)
