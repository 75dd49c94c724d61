"""What the operation works on: a U-Net's weights, and which layers they form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.ops.layout import check_dense

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
Form = tuple[object, ...]


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

    @property
    def form(self) -> Form:
        """All that weights which may take the place of these have in common with them."""
        stem = self.stem.weight
        sizes = (self.image_size, tuple(self.multipliers), self.blocks, tuple(self.attention))
        return *sizes, *stem.shape, stem.dtype, stem.device

    def check(self, where: str, form: Form | None = None) -> None:
        """Raises unless all is as said above, and of that form if one is given."""
        stem, levels = self.stem.weight, len(self.multipliers)
        if stem.dim() != 4 or stem.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{where}: stem must be (width, image channels, 3, 3) in float32 or float64, got "
                f"{tuple(stem.shape)} in {stem.dtype}"
            )
        if not levels or min(self.blocks, *self.multipliers) < 1:
            raise ValueError(
                f"{where}: multipliers and blocks must be positive, got {self.multipliers} and "
                f"{self.blocks}"
            )
        multiple = 2 ** (levels - 1)
        if self.image_size < 1 or self.image_size % multiple:
            raise ValueError(
                f"{where}: image_size must be a multiple of {multiple}, got {self.image_size}"
            )
        _check_layers(where, self)
        if form is not None and form != self.form:
            raise ValueError(f"{where}: weights must be like those before, {form}, got {self.form}")

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


def _layout(weights: UNetWeights) -> list[list[tuple[int, int, str | None]]]:
    """Of each stage in order its layers: channels in and out, and "attention" or `resample`."""
    widths = [m * len(weights.stem.weight) for m in weights.multipliers]
    channels, size = len(weights.stem.weight), weights.image_size
    skips, stages = [channels], []

    def attended(channels: int) -> list[tuple[int, int, str | None]]:
        return [(channels, channels, "attention")] if size in weights.attention else []

    for i, outs in enumerate(widths):
        stage: list[tuple[int, int, str | None]] = []
        for _ in range(weights.blocks):
            stage += [(channels, outs, None), *attended(outs)]
            channels = outs
            skips.append(outs)
        if i + 1 < len(widths):
            stage.append((outs, outs, "down"))
            skips.append(outs)
            size //= 2
        stages.append(stage)
    same = (channels, channels)
    stages.append([(*same, None), (*same, "attention"), (*same, None)])
    for i, outs in reversed(list(enumerate(widths))):
        stage = []
        for _ in range(weights.blocks + 1):
            stage += [(channels + skips.pop(), outs, None), *attended(outs)]
            channels = outs
        if i:
            stage.append((outs, outs, "up"))
            size *= 2
        stages.append(stage)
    return stages


def _kind(layer: Layer) -> str | None:
    return "attention" if isinstance(layer, Attention) else layer.resample


def _check_layers(where: str, weights: UNetWeights) -> None:
    """Raises unless there are the layers that there must be, with tensors that fit."""
    dtype, device = weights.stem.weight.dtype, weights.stem.weight.device

    def check(name: str, part: Affine, *shape: int) -> None:
        check_dense(where, f"{name}'s weight", part.weight, shape, dtype, device)
        check_dense(where, f"{name}'s bias", part.bias, shape[:1], dtype, device)

    width, image_channels = weights.stem.weight.shape[:2]
    check("stem", weights.stem, width, image_channels, 3, 3)
    layout = _layout(weights)
    wanted = [[kind for _, _, kind in stage] for stage in layout]
    stages = (*weights.downs, weights.middle, *weights.ups)
    found = [[_kind(layer) for layer in stage] for stage in stages]
    if len(weights.downs) != len(weights.ups) or found != wanted:
        raise ValueError(f"{where}: stages must have the layers {wanted}, got {found}")
    flat = (entry for stage in layout for entry in stage)
    for layer, (ins, outs, _) in zip(weights.layers, flat, strict=True):
        if isinstance(layer, Attention):
            check("norm", layer.norm, ins)
            check("qkv", layer.qkv, 3 * ins, ins, 1, 1)
            check("out", layer.out, ins, ins, 1, 1)
            continue
        check("norm1", layer.norm1, ins)
        check("conv1", layer.conv1, outs, ins, 3, 3)
        check("norm2", layer.norm2, outs)
        check("conv2", layer.conv2, outs, outs, 3, 3)
        if (layer.shortcut is not None) != (ins != outs):
            raise ValueError(
                f"{where}: a block must have a shortcut just where its channels change, here "
                f"from {ins} to {outs}"
            )
        if layer.shortcut is not None:
            check("shortcut", layer.shortcut, outs, ins, 1, 1)
    last = weights.multipliers[0] * width
    check("norm", weights.norm, last)
    check("head", weights.head, image_channels, last, 3, 3)
