"""Reference of `train_norm_silu`: torch's group norm, scale, shift and SiLU."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def train_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, row: Tensor | None, activate: bool
) -> Tensor:
    """Return silu(norm(x)·(1 + scale) + shift), of x's shape."""
    h = F.group_norm(x, groups, weight, bias, 1e-6)
    if row is not None:
        scale, shift = row[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h) if activate else h
