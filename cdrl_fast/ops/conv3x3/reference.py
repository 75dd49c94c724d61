"""The meaning of `conv3x3`, in plain torch: any device, any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SLOPE = 0.2
"""Of LeakyReLU."""
WORD = 32


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
    """Writes ``out`` and ``signs_out``; sums are float32, or float64 for float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    kernel = weight.to(dtype).view(3, 3, *weight.shape[1:]).permute(3, 2, 0, 1)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x.to(dtype).permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
    if row is not None:
        y = y + row[:, None, None, :]
    if signs is not None:
        y = torch.where(unpack(signs).view(y.shape), y, SLOPE * y)
    if residual is not None:
        h = residual.to(dtype)
        y = y + (torch.where(h > 0, h, h / SLOPE) if residual_activated else h)
    if signs_out is not None:
        signs_out.copy_(pack((y > 0).flatten(0, 2)))
    out.copy_(torch.where(y > 0, y, SLOPE * y) if activate else y)


def pack(positive: Tensor) -> Tensor:
    """Booleans (pixels, channels) → int32 words (channels / 32, pixels)."""
    bits = positive.long().view(len(positive), -1, WORD) << torch.arange(
        WORD, device=positive.device
    )
    # The conversion keeps the low 32 bits: bit 31 becomes the sign.
    return bits.sum(dim=2).T.int().contiguous()


def unpack(words: Tensor) -> Tensor:
    """Int32 words (channels / 32, pixels) → booleans (pixels, channels)."""
    bits = words.T[:, :, None] >> torch.arange(WORD, device=words.device, dtype=torch.int32)
    return (bits & 1).bool().flatten(1)
