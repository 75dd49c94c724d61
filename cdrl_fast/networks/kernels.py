"""Layers whose work faster kernels can do in place of torch's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

InputFactory = Callable[[], Tensor]


class Kernels(NamedTuple):
    """Functions that do the bulk of a network's work in place of torch's operations.

    Attributes:
        conv3x3: (x, weight, bias, again=) → a 3×3 convolution with zero padding; ``again`` is None
            or a function that computes x a second time, so that x need not be stored.
        norm_silu: (x, weight, bias, groups, row=, activate=) → as `GroupNormSilu`.
    """

    conv3x3: Callable[..., Tensor]
    norm_silu: Callable[..., Tensor]


class KernelLayer(nn.Module):
    """A layer that runs on `Kernels`, or on torch's operations while ``kernels`` is None."""

    kernels: Kernels | None = None


@contextmanager
def using_kernels(network: nn.Module, kernels: Kernels | None) -> Iterator[None]:
    """Run the network's layers on these kernels within the block."""
    layers = [m for m in network.modules() if isinstance(m, KernelLayer)]
    for layer in layers:
        layer.kernels = kernels
    try:
        yield
    finally:
        for layer in layers:
            layer.kernels = None


def kernels_of(module: nn.Module) -> Kernels | None:
    """Return the kernels that a module runs on, or None for torch's operations."""
    return module.kernels if isinstance(module, KernelLayer) else None


def convolve(conv: nn.Module, prepare: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return conv(prepare(*inputs)); kernels store the inputs alone for the gradient."""
    x = prepare(*inputs)
    again = () if kernels_of(conv) is None else (partial(prepare, *inputs),)
    result: Tensor = conv(x, *again)
    return result


class Conv3x3(nn.Conv2d, KernelLayer):
    """3×3 convolution with zero padding and bias."""

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, again: InputFactory | None = None) -> Tensor:
        """Return the convolution of x.

        Args:
            x: (batch, in_channels, height, width).
            again: a function that computes x a second time; kernels then do not store x.
        """
        return self._convolve_with(self.weight, x, again)

    def _convolve_with(self, weight: Tensor, x: Tensor, again: InputFactory | None) -> Tensor:
        if self.kernels is not None:
            return self.kernels.conv3x3(x, weight, self.bias, again=again)
        return F.conv2d(x, weight, self.bias, padding=1)


class Conv1x1(nn.Conv2d, KernelLayer):
    """1×1 convolution with bias: a linear map of each pixel's channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of each pixel of x, (batch, in_channels, height, width)."""
        if self.kernels is None:
            return super().forward(x)
        # Kernels return channels-last maps, on which this is one matrix product.
        pixels = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return pixels.permute(0, 3, 1, 2)


class GroupNormSilu(nn.GroupNorm, KernelLayer):
    """silu(norm(x)·(1 + scale) + shift), with gcd(32, channels) groups."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=1e-6)

    def forward(self, x: Tensor, row: Tensor | None = None, *, activate: bool = True) -> Tensor:
        """Return the normalised, shifted and activated maps.

        Args:
            x: (batch, channels, height, width).
            row: (batch, 2·channels), scale then shift; None means 0.
            activate: whether SiLU is applied.
        """
        if self.kernels is not None:
            return self.kernels.norm_silu(
                x, self.weight, self.bias, self.num_groups, row=row, activate=activate
            )
        h = super().forward(x)
        if row is not None:
            scale, shift = row[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return F.silu(h) if activate else h
