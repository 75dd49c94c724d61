"""Frozen initializers: folded weights, and for images a U-Net in one call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cdrl_fast.engine.folding.mlp_initializer import fold_points
from cdrl_fast.engine.folding.unet import fold_unet
from cdrl_fast.engine.gpu import uses_gpu_passes
from cdrl_fast.engine.unet_gpu import UNetPasses
from cdrl_fast.networks import MLPInitializer, UNetInitializer
from cdrl_fast.ops.unet_forward import UNetForward
from cdrl_fast.precision import Precision


class ImageInitializer:
    """A folded copy of a `UNetInitializer`.

    On GPUs it runs on the operations for GPUs, in the networks' precision. On CPUs it computes in
    the state's precision even if the networks compute in half precision: it runs once per level, so
    there is little to gain, and its output is where the level's chain begins.

    Args:
        network: copied, never modified.
        device, precision: where and how the copy computes.
        backend: as in `frozen_energy`.

    Attributes:
        supports_graph: see `FrozenModel`.
    """

    supports_graph = True

    def __init__(
        self, network: UNetInitializer, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device, self._dtype = network, device, precision.state
        self.folded = fold_unet(network, device, self._dtype)
        self.operation: UNetForward | UNetPasses
        if uses_gpu_passes(device, precision, backend):
            self.operation = UNetPasses(self.folded.weights, precision=precision, backend=backend)
        else:
            self.operation = UNetForward(self.folded.weights, backend=backend)

    def refresh(self) -> None:
        """Copy the network's current weights into the same memory."""
        fresh, weights = fold_unet(self._network, self._device, self._dtype), self.folded.weights
        for old, new in zip(weights.tensors(), fresh.weights.tensors(), strict=True):
            old.copy_(new)
        self.folded = replace(fresh, weights=weights)
        self.operation.load(weights)

    def level_inputs(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor]:
        """Return the arguments of `forward` at levels (1,) or (batch,), and labels likewise."""
        return (self.folded.at(logsnr, label),)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the proposal for x."""
        return self.operation(x, rows)


class PointInitializer:
    """A folded copy of an `MLPInitializer`; arguments as `ImageInitializer`.

    PyTorch computes it with every ``backend``.
    """

    supports_graph = False

    def __init__(
        self, network: MLPInitializer, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device, self._dtype = network, device, precision.state
        self.refresh()

    def refresh(self) -> None:
        """Copy the network's current weights."""
        self.folded = fold_points(self._network, self._device, self._dtype)

    def level_inputs(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the arguments of `forward` at levels (1,) or (batch,), and labels likewise."""
        return self.folded.at(logsnr, label)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the proposal for x."""
        return self.folded.forward(x, scale, shift)
