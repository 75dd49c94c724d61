"""Weights of a U-Net, and the layers that they form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.ops.layout import check_dense

EPSILON = 1e-6
"""ε of group norms."""


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a convolution, a linear map or a group norm."""

    weight: Tensor
    bias: Tensor


def groups(norm: Affine) -> int:
    """Return the number of groups of a group norm: gcd(32, channels)."""
    return math.gcd(32, len(norm.weight))


@dataclass(frozen=True)
class Block:
    """Residual block: x → conv2(silu(norm2(h)·(1 + scale) + shift)) + shortcut(resampled(x)).

    h = conv1(resampled(silu(norm1(x)))); scale and shift are the block's part of a row.

    Attributes:
        norm1, norm2: weights (in,), (out,).
        conv1, conv2: weights (out, in, 3, 3), (out, out, 3, 3).
        shortcut: weight (out, in, 1, 1); None, the identity, where in and out are equal.
        resample: "down" (means of 2×2 pixels), "up" (nearest neighbour) or None.
    """

    norm1: Affine
    conv1: Affine
    norm2: Affine
    conv2: Affine
    shortcut: Affine | None = None
    resample: str | None = None


@dataclass(frozen=True)
class Attention:
    """Attention over positions: x → x + out(softmax(q kᵀ/√C) v), [q, k, v] = qkv(norm(x)).

    Attributes:
        norm: weight (C,).
        qkv, out: weights (3·C, C, 1, 1), (C, C, 1, 1).
    """

    norm: Affine
    qkv: Affine
    out: Affine


Layer = Block | Attention
Form = tuple[object, ...]


@dataclass(frozen=True)
class UNetWeights:
    """Weights of x + head(silu(norm(h))), where h is the output of all layers for stem(x).

    Attributes:
        image_size: height and width of an image.
        multipliers: channels of each resolution as multiples of the stem's.
        blocks: blocks per resolution in ``downs``, not counting the one that halves the size.
        attention: sizes of the maps with attention; the middle has it in any case.
        stem: weight (width, image channels, 3, 3).
        downs, middle, ups: layers of each resolution. The outputs of the stem and of every block of
            ``downs`` (after its attention) are pushed on a stack; in ``ups`` each block that does
            not resample pops one and takes it as further input channels.
        norm: norm before the head.
        head: weight (image channels, channels, 3, 3).
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
        """Number of entries of a row per block: scale, then shift."""
        blocks = (layer for layer in self.layers if isinstance(layer, Block))
        return [2 * len(block.conv2.bias) for block in blocks]

    @property
    def form(self) -> Form:
        """Sizes, dtype and device; weights of equal form can replace each other."""
        stem = self.stem.weight
        sizes = (self.image_size, tuple(self.multipliers), self.blocks, tuple(self.attention))
        return *sizes, *stem.shape, stem.dtype, stem.device

    def check(self, operation: str, form: Form | None = None) -> None:
        """Raise ValueError or TypeError unless all tensors fit together.

        Args:
            operation: name for messages.
            form: required form, if any.
        """
        stem, levels = self.stem.weight, len(self.multipliers)
        if stem.dim() != 4 or stem.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{operation}: stem must be (width, image channels, 3, 3) in float32 or float64, "
                f"got {tuple(stem.shape)} in {stem.dtype}"
            )
        if not levels or min(self.blocks, *self.multipliers) < 1:
            raise ValueError(
                f"{operation}: multipliers and blocks must be positive, got {self.multipliers} and "
                f"{self.blocks}"
            )
        multiple = 2 ** (levels - 1)
        if self.image_size < 1 or self.image_size % multiple:
            raise ValueError(
                f"{operation}: image_size must be a multiple of {multiple}, got {self.image_size}"
            )
        _check_layers(operation, self)
        if form is not None and form != self.form:
            raise ValueError(f"{operation}: weights must have the form {form}, got {self.form}")

    def tensors(self) -> Iterator[Tensor]:
        """Yield all weights, each followed by its bias, in the order of the kernels' arguments."""
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
    """Return each stage's layers: channels in and out, and "attention" or `resample`."""
    widths = [m * len(weights.stem.weight) for m in weights.multipliers]
    channels, size = len(weights.stem.weight), weights.image_size
    skips, stages = [channels], []

    def attention(channels: int) -> list[tuple[int, int, str | None]]:
        return [(channels, channels, "attention")] if size in weights.attention else []

    for i, outs in enumerate(widths):
        stage: list[tuple[int, int, str | None]] = []
        for _ in range(weights.blocks):
            stage += [(channels, outs, None), *attention(outs)]
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
            stage += [(channels + skips.pop(), outs, None), *attention(outs)]
            channels = outs
        if i:
            stage.append((outs, outs, "up"))
            size *= 2
        stages.append(stage)
    return stages


def _kind(layer: Layer) -> str | None:
    return "attention" if isinstance(layer, Attention) else layer.resample


def _check_layers(operation: str, weights: UNetWeights) -> None:
    """Raise unless the layers are those of `_layout`, with tensors that fit."""
    dtype, device = weights.stem.weight.dtype, weights.stem.weight.device

    def check(name: str, part: Affine, *shape: int) -> None:
        check_dense(operation, f"{name}'s weight", part.weight, shape, dtype, device)
        check_dense(operation, f"{name}'s bias", part.bias, shape[:1], dtype, device)

    width, image_channels = weights.stem.weight.shape[:2]
    check("stem", weights.stem, width, image_channels, 3, 3)
    layout = _layout(weights)
    expected = [[kind for _, _, kind in stage] for stage in layout]
    stages = (*weights.downs, weights.middle, *weights.ups)
    actual = [[_kind(layer) for layer in stage] for stage in stages]
    if len(weights.downs) != len(weights.ups) or actual != expected:
        raise ValueError(f"{operation}: stages must have the layers {expected}, got {actual}")
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
                f"{operation}: a block must have a shortcut if and only if its channels change, "
                f"here from {ins} to {outs}"
            )
        if layer.shortcut is not None:
            check("shortcut", layer.shortcut, outs, ins, 1, 1)
    last = weights.multipliers[0] * width
    check("norm", weights.norm, last)
    check("head", weights.head, image_channels, last, 3, 3)
