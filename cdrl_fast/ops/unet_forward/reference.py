"""Reference of `unet_forward` in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.unet_forward.weights import (
    EPSILON,
    Affine,
    Attention,
    Block,
    Layer,
    UNetWeights,
    groups,
)


def forward(weights: UNetWeights, x: Tensor, rows: Tensor) -> Tensor:
    """Return the network's output, with shape and dtype of x.

    Args:
        weights: the network's weights.
        x: (batch, image channels, size, size), in the weights' dtype.
        rows: (1 or batch, R): scale, then shift, of each block in order.
    """
    parts = iter(torch.split(rows, weights.row_sizes, dim=1))
    h = _conv(weights.stem, x)
    skips = [h]
    for stage in weights.downs:
        for layer in stage:
            h = _layer(layer, h, parts)
            if isinstance(layer, Attention):
                skips[-1] = h
            else:
                skips.append(h)
    for layer in weights.middle:
        h = _layer(layer, h, parts)
    for stage in weights.ups:
        for layer in stage:
            if isinstance(layer, Block) and layer.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = _layer(layer, h, parts)
    return x + _conv(weights.head, F.silu(_norm(weights.norm, h)))


def _layer(layer: Layer, x: Tensor, rows: Iterator[Tensor]) -> Tensor:
    return _attention(layer, x) if isinstance(layer, Attention) else _block(layer, x, next(rows))


def _block(block: Block, x: Tensor, row: Tensor) -> Tensor:
    h = _conv(block.conv1, _resampled(block, F.silu(_norm(block.norm1, x))))
    scale, shift = row[:, :, None, None].chunk(2, dim=1)
    h = _conv(block.conv2, F.silu(_norm(block.norm2, h) * (1 + scale) + shift))
    x = _resampled(block, x)
    return h + (x if block.shortcut is None else _conv(block.shortcut, x))


def _attention(layer: Attention, x: Tensor) -> Tensor:
    qkv = _conv(layer.qkv, _norm(layer.norm, x)).flatten(2).mT
    q, k, v = qkv.chunk(3, dim=2)
    h = torch.softmax(q @ k.mT / q.shape[2] ** 0.5, dim=2) @ v
    return x + _conv(layer.out, h.mT.reshape(x.shape))


def _conv(layer: Affine, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def _norm(layer: Affine, x: Tensor) -> Tensor:
    return F.group_norm(x, groups(layer), layer.weight, layer.bias, EPSILON)


def _resampled(block: Block, x: Tensor) -> Tensor:
    if block.resample == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if block.resample else x
