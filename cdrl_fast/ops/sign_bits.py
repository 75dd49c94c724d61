"""Signs of activations, one bit each: all that the gradient of LeakyReLU needs.

Words are int32 in planes: (channels // 32, pixels), pixels being batch·height·width. Bit c % 32 of
word [c // 32, pixel] is set where channel c is > 0. So a plane's neighbouring pixels lie side by
side, and a program that holds 32 channels of a pixel makes whole words.
Here in plain torch; `pack_signs` and `unpack_signs` of device.py are the same in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
"""Channels whose signs share a word, and what numbers of channels are multiples of."""


def sign_bits_shape(activations: Tensor) -> tuple[int, int]:
    """Shape of the words of activations (batch, height, width, channels)."""
    batch, height, width, channels = activations.shape
    return channels // 32, batch * height * width


def pack(positive: Tensor) -> Tensor:
    """Booleans (…, channels) → words (channels // 32, pixels)."""
    bits = positive.reshape(-1, positive.shape[-1] // 32, 32).long()
    words = (bits << torch.arange(32, device=positive.device)).sum(dim=2)
    # From [0, 2³²) to the int32 with the same bits.
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32).T.contiguous()


def unpack(words: Tensor) -> Tensor:
    """Words (channels // 32, pixels) → booleans (pixels, channels)."""
    bits = words.T[:, :, None] >> torch.arange(32, device=words.device, dtype=torch.int32)
    return (bits & 1 != 0).flatten(1)
