"""Forward pass of a U-Net that takes level and label as scales and shifts of its blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.fp32_precision import fp32_precision
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

BACKENDS = ("native", "reference")
"""Backends in order of preference."""


class UNetForward:
    """Forward pass of the network of `UNetWeights`.

    With "native" a sample's output has the same bits in any batch and with any number of threads.

    Args:
        weights: float32 or float64, dense, on the device that computes.
        backend: "native" (C++, on CPUs), "reference", or "auto" (the first available one). float64
            runs on the reference.

    Attributes:
        backend: the backend that computes, "native" or "reference".
        weights: the current weights.

    Raises:
        ValueError: the shapes of the weights do not fit.
        TypeError: their dtypes do not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the initializer of Zhu et al., ICLR 2024.
    """

    def __init__(self, weights: UNetWeights, *, backend: str = "auto") -> None:
        weights.check("UNetForward")
        stem = weights.stem.weight
        self.backend = choose("UNetForward", backend, stem.device, stem.dtype, BACKENDS)
        self.weights = weights
        self._kernel = native.UNet(weights) if self.backend == "native" else None

    def load(self, weights: UNetWeights) -> None:
        """Replace the weights by others of the same `UNetWeights.form`."""
        weights.check("UNetForward", self.weights.form)
        self.weights = weights
        if self._kernel is not None:
            self._kernel.load(weights)

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the network's output for x.

        Args:
            x: (batch, channels, size, size), with the weights' dtype and device.
            rows: dense (1 or batch, R): scale, then shift, of each block in order.

        Returns:
            A new dense tensor of x's shape.

        Raises:
            ValueError: a shape does not fit.
            TypeError: a dtype or device does not fit.
        """
        check_call("UNetForward", self.weights, x, rows)
        if self._kernel is None:
            with fp32_precision("ieee"):
                return reference.forward(self.weights, x, rows)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._kernel.run(x.contiguous(), rows, out)
        return out

    def working_memory(self, batch: int) -> int | None:
        """Return the native backend's workspace for a batch in bytes; None for the reference."""
        return None if self._kernel is None else self._kernel.workspace_bytes(batch)


def check_call(operation: str, weights: UNetWeights, x: Tensor, rows: Tensor) -> None:
    """Raise ValueError or TypeError unless x and rows fit the weights; see `UNetForward`."""
    stem, size = weights.stem.weight, sum(weights.row_sizes)
    shape = (stem.shape[1], weights.image_size, weights.image_size)
    if x.shape[1:] != shape:
        raise ValueError(
            f"{operation}: x must have shape (batch, {', '.join(map(str, shape))}), "
            f"got {tuple(x.shape)}"
        )
    if rows.shape not in ((1, size), (x.shape[0], size)) or not rows.is_contiguous():
        raise ValueError(
            f"{operation}: rows must be dense, of shape (1 or {x.shape[0]}, {size}), got "
            f"{tuple(rows.shape)} with strides {rows.stride()}"
        )
    for name, tensor in (("x", x), ("rows", rows)):
        if tensor.dtype != stem.dtype or tensor.device != stem.device:
            raise TypeError(
                f"{operation}: {name} must be {stem.dtype} on {stem.device}, as the weights are, "
                f"got {tensor.dtype} on {tensor.device}"
            )
