"""The meaning of `train_norm_silu`: torch's group norm, and what follows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def train_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, row: Tensor | None, activate: bool
) -> Tensor:
    """The shape of x."""
    h = F.group_norm(x, groups, weight, bias, 1e-6)
    if row is not None:
        scale, shift = row[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h) if activate else h
