"""What the operation works on: a U-Net's weights, and which layers they form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

EPSILON = 1e-6
"""Of group norms."""


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a convolution, a linear map, or a group norm's channels."""

    weight: Tensor
    bias: Tensor


def groups(norm: Affine) -> int:
    """Of a group norm over so many channels: 32, or as many as divide them."""
    return math.gcd(32, len(norm.weight))


@dataclass(frozen=True)
class Block:
    """x → conv2(silu(norm2(h)·(1 + scale) + shift)) + shortcut(resampled(x)).

    h = conv1(resampled(silu(norm1(x)))); scale and shift are its part of a row.

    Attributes:
        conv1, conv2: weights (out, in, 3, 3), (out, out, 3, 3).
        shortcut: weight (out, in, 1, 1), where in and out differ.
        resample: "down" (2×2 means), "up" (nearest) or None.
    """

    norm1: Affine
    conv1: Affine
    norm2: Affine
    conv2: Affine
    shortcut: Affine | None = None
    resample: str | None = None


@dataclass(frozen=True)
class Attention:
    """x → x + out(softmax(q kᵀ/√C) v) over positions, [q, k, v] = qkv(norm(x)).

    Attributes:
        qkv, out: weights (3·C, C, 1, 1), (C, C, 1, 1).
    """

    norm: Affine
    qkv: Affine
    out: Affine


Layer = Block | Attention


@dataclass(frozen=True)
class UNetWeights:
    """Weights of x + head(silu(norm(h))), h being what the layers make of stem(x).

    Attributes:
        image_size: height and width of an image.
        multipliers: channels of each level as multiples of the stem's.
        blocks: blocks of a level on the way down, besides the one that halves.
        attention: sizes of the maps with attention, besides the middle's.
        downs, middle, ups: layers of each level. On the way down the stem's and every block's
            output (after its attention) is kept; on the way up blocks that don't resample take the
            last one of these as further channels.
    """

    image_size: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    stem: Affine
    downs: tuple[tuple[Layer, ...], ...]
    middle: tuple[Layer, ...]
    ups: tuple[tuple[Layer, ...], ...]
    norm: Affine
    head: Affine

    @property
    def layers(self) -> list[Layer]:
        """All layers in order."""
        stages = (*self.downs, self.middle, *self.ups)
        return [layer for stage in stages for layer in stage]

    @property
    def row_sizes(self) -> list[int]:
        """Entries that each block takes of a row: scale, then shift."""
        blocks = (layer for layer in self.layers if isinstance(layer, Block))
        return [2 * len(block.conv2.bias) for block in blocks]

    def tensors(self) -> Iterator[Tensor]:
        """All weights, each followed by its bias, in the order in which kernels take them."""
        affine = [self.stem]
        for layer in self.layers:
            if isinstance(layer, Block):
                affine += [layer.norm1, layer.conv1, layer.norm2, layer.conv2]
                affine += [] if layer.shortcut is None else [layer.shortcut]
            else:
                affine += [layer.norm, layer.qkv, layer.out]
        for part in (*affine, self.norm, self.head):
            yield from (part.weight, part.bias)
