"""Reference of `stem` in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.layout import filters, leaky
from cdrl_fast.ops.sign_bits import pack


def stem(
    y: Tensor, weight: Tensor, bias: Tensor, copies: int, out: Tensor, signs: Tensor | None
) -> None:
    """Write leaky(h), and the sign bits h > 0 unless ``signs`` is None, ``copies`` times each."""
    rounded = y.to(weight.dtype).to(y.dtype)
    h = F.conv2d(rounded, filters(weight), bias, padding=1).permute(0, 2, 3, 1)
    out.copy_(leaky(h).repeat(copies, 1, 1, 1))
    if signs is not None:
        signs.copy_(pack(h > 0).repeat(1, copies))
