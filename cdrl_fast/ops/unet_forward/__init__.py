"""A U-Net's forward pass, its level and label given as scales and shifts."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import CPU_BACKENDS, choose
from cdrl_fast.ops.unet_forward import native, reference
from cdrl_fast.ops.unet_forward.weights import Affine, Attention, Block, Layer, UNetWeights

__all__ = [
    "Affine",
    "Attention",
    "Block",
    "Layer",
    "UNetForward",
    "UNetWeights",
    "check_call",
]


class UNetForward:
    """The output of the network of `UNetWeights`.

    In the native room a sample's output is the same to the bit whatever the batch it is in and the
    number of threads.

    Args:
        weights: float32 or float64, dense, on the device where it computes.
        backend: "native" (C++, on CPUs), "reference", or "auto": the first that can. float64 is the
            reference's.

    Raises:
        ValueError: weights that do not fit. BackendUnavailable: a room that cannot be had.

    Source: the initializer of Zhu et al., ICLR 2024.
    """

    def __init__(self, weights: UNetWeights, *, backend: str = "auto") -> None:
        weights.check("UNetForward")
        stem = weights.stem.weight
        self.backend = choose("UNetForward", backend, stem.device, stem.dtype, CPU_BACKENDS)
        self.weights = weights
        self._kernel = native.UNet(weights) if self.backend == "native" else None

    def load(self, weights: UNetWeights) -> None:
        """Takes other weights of the same form."""
        weights.check("UNetForward", self.weights.form)
        self.weights = weights
        if self._kernel is not None:
            self._kernel.load(weights)

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """The network's output for x.

        Args:
            x: (batch, channels, size, size), of the weights' dtype and device.
            rows: (1 or batch, R), dense: for each block in order scale, then shift.

        Returns:
            A new dense tensor of x's shape.

        Raises:
            ValueError: shapes that do not fit. TypeError: dtypes that do not.
        """
        check_call("UNetForward", self.weights, x, rows)
        if self._kernel is None:
            return reference.forward(self.weights, x, rows)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._kernel.run(x.contiguous(), rows, out)
        return out

    def working_memory(self, batch: int) -> int | None:
        """Bytes that the native room takes for a batch, besides arguments and weights."""
        return None if self._kernel is None else self._kernel.workspace_bytes(batch)


def check_call(where: str, weights: UNetWeights, x: Tensor, rows: Tensor) -> None:
    """Raises unless these are arguments of a network with such weights; see `UNetForward`."""
    like, size = weights.stem.weight, sum(weights.row_sizes)
    shape = (like.shape[1], weights.image_size, weights.image_size)
    if x.shape[1:] != shape:
        raise ValueError(
            f"{where}: x must have shape (batch, {', '.join(map(str, shape))}), "
            f"got {tuple(x.shape)}"
        )
    if rows.shape not in ((1, size), (x.shape[0], size)) or not rows.is_contiguous():
        raise ValueError(
            f"{where}: rows must be dense, of shape (1 or {x.shape[0]}, {size}), got "
            f"{tuple(rows.shape)} with strides {rows.stride()}"
        )
    for name, tensor in (("x", x), ("rows", rows)):
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise TypeError(
                f"{where}: {name} must be {like.dtype} on {like.device} like the weights, "
                f"got {tensor.dtype} on {tensor.device}"
            )
