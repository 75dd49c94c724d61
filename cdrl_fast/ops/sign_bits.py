"""Signs of activations, one bit each: all that the gradient of LeakyReLU needs.

Sign bits are int32 (channels // 32, pixels), with batch·height·width pixels. Bit c % 32 of entry
[c // 32, pixel] is set where channel c is > 0. So one int32 has the signs of 32 channels of a
pixel, and neighbouring pixels are contiguous.

`pack` and `unpack` are the reference; `pack_signs` and `unpack_signs` of triton_common.py do the
same in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
"""Signs per int32; numbers of channels are multiples of it."""


def sign_bits_shape(activations: Tensor) -> tuple[int, int]:
    """Return the shape of the sign bits of activations (batch, height, width, channels)."""
    batch, height, width, channels = activations.shape
    return channels // 32, batch * height * width


def pack(positive: Tensor) -> Tensor:
    """Return the sign bits (channels // 32, pixels) of booleans (…, channels)."""
    bits = positive.reshape(-1, positive.shape[-1] // 32, 32).long()
    unsigned = (bits << torch.arange(32, device=positive.device)).sum(dim=2)
    # From [0, 2³²) to the int32 with the same bits.
    signed = torch.where(unsigned < 2**31, unsigned, unsigned - 2**32)
    return signed.to(torch.int32).T.contiguous()


def unpack(sign_bits: Tensor) -> Tensor:
    """Return booleans (pixels, channels) from sign bits (channels // 32, pixels)."""
    positions = torch.arange(32, device=sign_bits.device, dtype=torch.int32)
    return (sign_bits.T[:, :, None] >> positions & 1 != 0).flatten(1)
