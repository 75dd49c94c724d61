"""Reference of `conv3x3` in plain torch, for any device and floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.layout import SLOPE, filters, inverse_leaky, leaky, sum_dtype
from cdrl_fast.ops.sign_bits import pack, unpack


def conv3x3(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    signs: Tensor | None,
    signs_out: Tensor | None,
    transposed: bool,
    residual_activated: bool,
    activate: bool,
) -> None:
    """Write ``out`` and ``signs_out``; sums are float32, or float64 for float64."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    images = x.to(sum_dtype(x.dtype)).permute(0, 3, 1, 2)
    y = convolve(images, filters(weight), padding=1).permute(0, 2, 3, 1)
    if row is not None:
        y = y + row[:, None, None, :]
    if signs is not None:
        y = torch.where(unpack(signs).view(y.shape), y, SLOPE * y)
    if residual is not None:
        y = y + (inverse_leaky(residual) if residual_activated else residual)
    if signs_out is not None:
        signs_out.copy_(pack(y > 0))
    out.copy_(leaky(y) if activate else y)
