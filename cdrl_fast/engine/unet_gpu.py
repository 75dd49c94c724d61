"""The pass over a U-Net on a GPU: which operation when.

Convolutions and attention are torch's libraries'; what lies between them is a kernel of ours. It
never waits for the device, so a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.dispatch import TRITON_BACKENDS, choose
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.norm_silu import norm_silu
from cdrl_fast.ops.unet_forward import (
    Affine,
    Attention,
    Block,
    Layer,
    UNetWeights,
    check_call,
)
from cdrl_fast.precision import Precision

Part = TypeVar("Part", Attention, Block, UNetWeights)


class UNetPasses:
    """The output of the network of `UNetWeights`, by operations for GPUs.

    Args:
        weights: as `UNetForward` takes them; copied.
        precision: `Precision.network` is the dtype of activations and of the products' weights,
            `Precision.fp32_precision` how convolutions take float32. Rows, norms' sums and the last sum
            are of `Precision.state`.
        backend: of the operations: "triton", "reference", or "auto".

    Raises:
        ValueError: weights that do not fit. BackendUnavailable: a room that cannot be had.

    Source: the initializer of Zhu et al., ICLR 2024.
    """

    def __init__(
        self, weights: UNetWeights, *, precision: Precision, backend: str = "auto"
    ) -> None:
        weights.check("UNetPasses")
        stem = weights.stem.weight
        self.backend = choose("UNetPasses", backend, stem.device, stem.dtype, TRITON_BACKENDS)
        self._given, self._precision = weights, precision
        self._weights = _packed(weights, precision)

    def load(self, weights: UNetWeights) -> None:
        """Takes other weights of the same form, into the same memory: a graph may read it."""
        weights.check("UNetPasses", self._given.form)
        fresh = _packed(weights, self._precision)
        for old, new in zip(self.weights(), fresh.tensors(), strict=True):
            old.copy_(new)

    def weights(self) -> list[Tensor]:
        """All weights as the operations take them, in memory that `load` writes again."""
        return list(self._weights.tensors())

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network's output for x; arguments, result and errors as of `UNetForward`."""
        check_call("UNetPasses", self._given, x, rows)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if not x.numel():
            return out
        with fp32_precision(self._precision.fp32_precision):
            change = self._change(x, rows)
        return torch.add(x, change.permute(0, 3, 1, 2), out=out)

    def _change(self, x: Tensor, rows: Tensor) -> Tensor:
        """What the network adds to x: dense (batch, size, size, image channels)."""
        weights, parts = self._weights, iter(torch.split(rows, self._weights.row_sizes, dim=1))
        image = x.permute(0, 2, 3, 1).to(
            weights.stem.weight.dtype, memory_format=torch.contiguous_format
        )
        h = _convolved(weights.stem, image)
        skips = [h]
        for stage in weights.downs:
            for layer in stage:
                h = self._layer(layer, h, parts)
                if isinstance(layer, Attention):
                    skips[-1] = h
                else:
                    skips.append(h)
        for layer in weights.middle:
            h = self._layer(layer, h, parts)
        for stage in weights.ups:
            for layer in stage:
                if isinstance(layer, Block) and layer.resample is None:
                    h = torch.cat([h, skips.pop()], dim=3)
                h = self._layer(layer, h, parts)
        return _convolved(weights.head, self._norm(weights.norm, h))

    def _layer(self, layer: Layer, x: Tensor, rows: Iterator[Tensor]) -> Tensor:
        if isinstance(layer, Attention):
            return self._attention(layer, x)
        return self._block(layer, x, next(rows))

    def _block(self, block: Block, x: Tensor, row: Tensor) -> Tensor:
        h = _resampled(block, self._norm(block.norm1, x))
        h = _convolved(block.conv1, h, bias=False)
        bias = block.conv1.bias
        h = norm_silu(
            h,
            block.norm2.weight,
            block.norm2.bias,
            offset=bias,
            row=row,
            out=h,
            backend=self.backend,
        )
        x = _resampled(block, x)
        if block.shortcut is None:
            return _convolved(block.conv2, h).add_(x)
        # Its bias has the convolution's in it.
        shortcut = F.linear(x, block.shortcut.weight, block.shortcut.bias)
        return shortcut.add_(_convolved(block.conv2, h, bias=False))

    def _attention(self, layer: Attention, x: Tensor) -> Tensor:
        h = self._norm(layer.norm, x, activate=False)
        qkv = F.linear(h, layer.qkv.weight, layer.qkv.bias).flatten(1, 2)
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        h = F.scaled_dot_product_attention(q, k, v).reshape(x.shape)
        return F.linear(h, layer.out.weight, layer.out.bias).add_(x)

    def _norm(self, norm: Affine, x: Tensor, *, activate: bool = True) -> Tensor:
        return norm_silu(x, norm.weight, norm.bias, activate=activate, backend=self.backend)


def _convolved(layer: Affine, x: Tensor, *, bias: bool = True) -> Tensor:
    """A 3×3 convolution of dense (batch, height, width, channels), which the result is too."""
    planes = x.permute(0, 3, 1, 2)
    planes = F.conv2d(planes, layer.weight, layer.bias if bias else None, padding=1)
    # Already so where the library keeps the layout that it is given.
    return planes.permute(0, 2, 3, 1).contiguous()


def _resampled(block: Block, x: Tensor) -> Tensor:
    if block.resample is None:
        return x
    planes = x.permute(0, 3, 1, 2)
    if block.resample == "down":
        planes = F.avg_pool2d(planes, 2)
    else:
        planes = F.interpolate(planes, scale_factor=2.0, mode="nearest")
    return planes.permute(0, 2, 3, 1).contiguous()


def _packed(weights: UNetWeights, precision: Precision) -> UNetWeights:
    """Copies as the operations take them.

    3×3 weights are channels-last and 1×1 ones matrices, in the networks' dtype, with biases
    likewise. But norms are in the state's, and so is the bias of a block's first convolution, which
    a norm adds. That of the second is added to the shortcut's where there is one.
    """

    def norm(part: Affine) -> Affine:
        return Affine(*(t.to(precision.state, copy=True) for t in (part.weight, part.bias)))

    def product(part: Affine) -> Affine:
        weight, dtype = part.weight, precision.network
        if weight.shape[-1] == 1:
            weight = weight.flatten(1).to(dtype, copy=True)
        else:
            weight = weight.to(dtype, copy=True, memory_format=torch.channels_last)
        return Affine(weight, part.bias.to(dtype, copy=True))

    def one(part: Affine) -> Affine:
        return norm(part) if part.weight.dim() == 1 else product(part)

    def layer(given: Layer) -> Layer:
        if isinstance(given, Attention):
            return _each(given, one)
        packed, shortcut = _each(given, one), given.shortcut
        conv1 = replace(packed.conv1, bias=given.conv1.bias.to(precision.state, copy=True))
        if shortcut is not None:
            shortcut = one(replace(shortcut, bias=shortcut.bias + given.conv2.bias))
        return replace(packed, conv1=conv1, shortcut=shortcut)

    return replace(
        _each(weights, one),
        downs=tuple(tuple(layer(given) for given in stage) for stage in weights.downs),
        middle=tuple(layer(given) for given in weights.middle),
        ups=tuple(tuple(layer(given) for given in stage) for stage in weights.ups),
    )


def _each(part: Part, by: Callable[[Affine], Affine]) -> Part:
    """The part with its own maps and norms changed, not those of its layers."""
    named = ((field.name, getattr(part, field.name)) for field in fields(part))
    changed: dict[str, Any] = {name: by(value) for name, value in named if type(value) is Affine}
    return replace(part, **changed)
