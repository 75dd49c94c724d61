"""Reference of `energy_gradient`, in plain torch, without autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.energy_gradient.weights import Block, ResNetWeights
from cdrl_fast.ops.layout import SLOPE


class Signs:
    """Signs of activations, recorded in the forward pass for the backward pass.

    For each block the activations before its first and its second convolution, then those of the
    head.

    Args:
        fixed: signs that replace the actual ones. Two implementations with different rounding can
            be compared only with equal signs.

    Attributes:
        recorded: booleans, True where an activation is positive, in order.
    """

    def __init__(self, fixed: Sequence[Tensor] | None = None) -> None:
        self.recorded: list[Tensor] = []
        self._fixed = fixed

    def record(self, h: Tensor) -> Tensor:
        """Return the signs of ``h`` and append them to ``recorded``."""
        sign = h > 0 if self._fixed is None else self._fixed[len(self.recorded)]
        self.recorded.append(sign)
        return sign

    def leaky_relu(self, h: Tensor) -> Tensor:
        """Return LeakyReLU(h), and record the signs."""
        return torch.where(self.record(h), h, SLOPE * h)


def value(
    weights: ResNetWeights, y: Tensor, rows: Tensor, head: Tensor, signs: Signs
) -> tuple[Tensor, Tensor]:
    """Return f(y), (batch,), and the last block's output."""
    h = F.conv2d(y, weights.stem, weights.stem_bias, padding=1)
    block_rows = iter(torch.split(rows, weights.row_sizes, dim=1))
    for i, stage in enumerate(weights.stages):
        h = F.avg_pool2d(h, 2) if i else h
        for block in stage:
            row = next(block_rows)[:, :, None, None]
            u = F.conv2d(signs.leaky_relu(h), block.conv1, padding=1) + row
            r = F.conv2d(signs.leaky_relu(u), block.conv2, block.bias, padding=1)
            h = r + _shortcut(block, h)
    positive = torch.where(signs.record(h), h, 0.0)
    return (positive.sum(dim=(2, 3)) * head).sum(dim=1), h


def value_and_gradient(
    weights: ResNetWeights,
    y: Tensor,
    rows: Tensor,
    head: Tensor,
    signs: Signs | None = None,
) -> tuple[Tensor, Tensor]:
    """Return f(y) and ∇f(y).

    Args:
        weights: the network.
        y: (batch, image channels, height, width), with the weights' dtype.
        rows: (1 or batch, R), the bias rows of the blocks' first convolutions, one after another.
        head: (1 or batch, channels).
        signs: an empty `Signs`; None creates one.

    Returns:
        f(y) (batch,) and ∇f(y) with the shape of y.
    """
    signs = Signs() if signs is None else signs
    energy, h = value(weights, y, rows, head, signs)
    remaining = list(signs.recorded)
    g = torch.where(remaining.pop(), head[:, :, None, None].expand_as(h), 0.0)
    for i, stage in reversed(list(enumerate(weights.stages))):
        for block in reversed(stage):
            r = _scaled(F.conv_transpose2d(g, block.conv2, padding=1), remaining.pop())
            r = _scaled(F.conv_transpose2d(r, block.conv1, padding=1), remaining.pop())
            if block.shortcut is not None:
                g = F.conv_transpose2d(g, block.shortcut, padding=1)
            g = g + r
        if i:
            g = 0.25 * g.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return energy, F.conv_transpose2d(g, weights.stem, padding=1)


def _shortcut(block: Block, h: Tensor) -> Tensor:
    if block.shortcut is None:
        return h
    return F.conv2d(h, block.shortcut, block.shortcut_bias, padding=1)


def _scaled(g: Tensor, sign: Tensor) -> Tensor:
    return torch.where(sign, g, SLOPE * g)
