"""The meaning of `energy_gradient`, in plain torch: a fixed list of operations, no autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.energy_gradient.weights import Block, ResNetWeights
from cdrl_fast.ops.layout import SLOPE


class Signs:
    """Which activations are positive: one bit each is all that the gradient needs.

    Kept in the forward pass and taken in reverse order in the other; or ``given``, so that two
    implementations can be compared whose rounding would decide some of them differently.
    """

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        self.kept: list[Tensor] = []
        self._given = given

    def keep(self, h: Tensor) -> Tensor:
        sign = h > 0 if self._given is None else self._given[len(self.kept)]
        self.kept.append(sign)
        return sign

    def activated(self, h: Tensor) -> Tensor:
        """LeakyReLU."""
        return torch.where(self.keep(h), h, SLOPE * h)


def value(
    weights: ResNetWeights, y: Tensor, rows: Tensor, head: Tensor, signs: Signs
) -> tuple[Tensor, Tensor]:
    """f(y): (batch,); and the last block's output."""
    h = F.conv2d(y, weights.stem, weights.stem_bias, padding=1)
    parts = iter(torch.split(rows, weights.row_sizes, dim=1))
    for i, stage in enumerate(weights.stages):
        h = F.avg_pool2d(h, 2) if i else h
        for block in stage:
            u = F.conv2d(signs.activated(h), block.conv1, padding=1) + next(parts)[:, :, None, None]
            r = F.conv2d(signs.activated(u), block.conv2, block.bias, padding=1)
            h = r + _shortcut(block, h)
    positive = torch.where(signs.keep(h), h, 0.0)
    return (positive.sum(dim=(2, 3)) * head).sum(dim=1), h


def value_and_gradient(
    weights: ResNetWeights,
    y: Tensor,
    rows: Tensor,
    head: Tensor,
    signs: Signs | None = None,
) -> tuple[Tensor, Tensor]:
    """f(y) and ∇f(y).

    Args:
        y: (batch, image channels, H, W), of the weights' dtype.
        rows: (1 or batch, R), for each block the bias row of its first convolution.
        head: (1 or batch, channels).
        signs: as in `Signs`.

    Returns:
        (batch,) and the shape of y.
    """
    signs = Signs() if signs is None else signs
    energy, h = value(weights, y, rows, head, signs)
    signs_left = list(signs.kept)
    g = torch.where(signs_left.pop(), head[:, :, None, None].expand_as(h), 0.0)
    for i, stage in reversed(list(enumerate(weights.stages))):
        for block in reversed(stage):
            r = _scaled(F.conv_transpose2d(g, block.conv2, padding=1), signs_left.pop())
            r = _scaled(F.conv_transpose2d(r, block.conv1, padding=1), signs_left.pop())
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
