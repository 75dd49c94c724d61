"""Forward pass of a U-Net on a GPU, as a list of launches.

Convolutions and attention are torch's, the operations between them are the library's own kernels.
Nothing waits for the device, so a CUDA graph can capture it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.norm_silu import BACKENDS, norm_silu
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
    """The network of `UNetWeights` on the operations for GPUs.

    Args:
        weights: as for `UNetForward`; copied.
        precision: `Precision.network` is the dtype of activations, convolutions and linear maps,
            `Precision.fp32_precision` the float32 precision of convolutions. Rows, sums of norms
            and the sum with x are in `Precision.state`.
        backend: of the operations: "triton", "reference", or "auto".

    Raises:
        ValueError: the weights do not fit each other.
        BackendUnavailable: the backend is not available.

    Source: the initializer of Zhu et al., ICLR 2024.
    """

    def __init__(
        self, weights: UNetWeights, *, precision: Precision, backend: str = "auto"
    ) -> None:
        weights.check("UNetPasses")
        stem = weights.stem.weight
        self.backend = choose("UNetPasses", backend, stem.device, stem.dtype, BACKENDS)
        self._original, self._precision = weights, precision
        self._weights = _packed(weights, precision)

    def load(self, weights: UNetWeights) -> None:
        """Copy other weights of the same form into the same memory, which a graph may read."""
        weights.check("UNetPasses", self._original.form)
        fresh = _packed(weights, self._precision)
        for old, new in zip(self.weights(), fresh.tensors(), strict=True):
            old.copy_(new)

    def weights(self) -> list[Tensor]:
        """Return all weights in the operations' layout, in the memory that `load` overwrites."""
        return list(self._weights.tensors())

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the network's output for x; arguments and errors as `UNetForward.__call__`."""
        check_call("UNetPasses", self._original, x, rows)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if not x.numel():
            return out
        with fp32_precision(self._precision.fp32_precision):
            residual = self._residual(x, rows)
        return torch.add(x, residual.permute(0, 3, 1, 2), out=out)

    def _residual(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return what the network adds to x: dense (batch, size, size, image channels)."""
        weights, parts = self._weights, iter(torch.split(rows, self._weights.row_sizes, dim=1))
        image = x.permute(0, 2, 3, 1).to(
            weights.stem.weight.dtype, memory_format=torch.contiguous_format
        )
        h = _convolve(weights.stem, image)
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
        return _convolve(weights.head, self._norm(weights.norm, h))

    def _layer(self, layer: Layer, x: Tensor, rows: Iterator[Tensor]) -> Tensor:
        if isinstance(layer, Attention):
            return self._attention(layer, x)
        return self._block(layer, x, next(rows))

    def _block(self, block: Block, x: Tensor, row: Tensor) -> Tensor:
        h = _resample(block, self._norm(block.norm1, x))
        h = _convolve(block.conv1, h, bias=False)
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
        x = _resample(block, x)
        if block.shortcut is None:
            return _convolve(block.conv2, h).add_(x)
        # The shortcut's bias includes the convolution's.
        shortcut = F.linear(x, block.shortcut.weight, block.shortcut.bias)
        return shortcut.add_(_convolve(block.conv2, h, bias=False))

    def _attention(self, layer: Attention, x: Tensor) -> Tensor:
        h = self._norm(layer.norm, x, activate=False)
        qkv = F.linear(h, layer.qkv.weight, layer.qkv.bias).flatten(1, 2)
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        h = F.scaled_dot_product_attention(q, k, v).reshape(x.shape)
        return F.linear(h, layer.out.weight, layer.out.bias).add_(x)

    def _norm(self, norm: Affine, x: Tensor, *, activate: bool = True) -> Tensor:
        return norm_silu(x, norm.weight, norm.bias, activate=activate, backend=self.backend)


def _convolve(layer: Affine, x: Tensor, *, bias: bool = True) -> Tensor:
    """Return a 3×3 convolution of x; both are dense (batch, height, width, channels)."""
    planes = x.permute(0, 3, 1, 2)
    planes = F.conv2d(planes, layer.weight, layer.bias if bias else None, padding=1)
    # No copy if the convolution library keeps the input's layout.
    return planes.permute(0, 2, 3, 1).contiguous()


def _resample(block: Block, x: Tensor) -> Tensor:
    if block.resample is None:
        return x
    planes = x.permute(0, 3, 1, 2)
    if block.resample == "down":
        planes = F.avg_pool2d(planes, 2)
    else:
        planes = F.interpolate(planes, scale_factor=2.0, mode="nearest")
    return planes.permute(0, 2, 3, 1).contiguous()


def _packed(weights: UNetWeights, precision: Precision) -> UNetWeights:
    """Return copies of the weights in the layout of the operations.

    Convolutions are in the networks' dtype: 3×3 weights channels-last, 1×1 weights as matrices.
    Norms are in the state's dtype, and so is the bias of a block's first convolution, which the
    following norm adds. The second one's bias is added to the shortcut's if there is one.
    """

    def norm(affine: Affine) -> Affine:
        return Affine(*(t.to(precision.state, copy=True) for t in (affine.weight, affine.bias)))

    def convolution(affine: Affine) -> Affine:
        weight, dtype = affine.weight, precision.network
        if weight.shape[-1] == 1:
            weight = weight.flatten(1).to(dtype, copy=True)
        else:
            weight = weight.to(dtype, copy=True, memory_format=torch.channels_last)
        return Affine(weight, affine.bias.to(dtype, copy=True))

    def pack(affine: Affine) -> Affine:
        return norm(affine) if affine.weight.dim() == 1 else convolution(affine)

    def pack_layer(layer: Layer) -> Layer:
        if isinstance(layer, Attention):
            return _map_affine(layer, pack)
        packed, shortcut = _map_affine(layer, pack), layer.shortcut
        conv1 = replace(packed.conv1, bias=layer.conv1.bias.to(precision.state, copy=True))
        if shortcut is not None:
            shortcut = pack(replace(shortcut, bias=shortcut.bias + layer.conv2.bias))
        return replace(packed, conv1=conv1, shortcut=shortcut)

    return replace(
        _map_affine(weights, pack),
        downs=tuple(tuple(map(pack_layer, stage)) for stage in weights.downs),
        middle=tuple(map(pack_layer, weights.middle)),
        ups=tuple(tuple(map(pack_layer, stage)) for stage in weights.ups),
    )


def _map_affine(part: Part, function: Callable[[Affine], Affine]) -> Part:
    """Return the part with ``function`` applied to its own fields of type `Affine`."""
    named = ((field.name, getattr(part, field.name)) for field in fields(part))
    mapped: dict[str, Any] = {k: function(v) for k, v in named if type(v) is Affine}
    return replace(part, **mapped)
