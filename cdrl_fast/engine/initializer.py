"""The library's own initializers: folded weights, and for images a whole U-Net in one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdrl_fast.engine.fallback import FrozenNetwork
from cdrl_fast.engine.fold_points import fold_points
from cdrl_fast.engine.fold_unet import fold_unet
from cdrl_fast.networks import MLPInitializer, UNetInitializer
from cdrl_fast.ops.unet_forward import UNetForward
from cdrl_fast.precision import Precision


class InitializerPlan:
    """A folded copy of a `UNetInitializer`.

    It computes in the state's precision even where the networks are to take half: it runs once a
    level, so that there is little to gain, and its output is where the level's chain begins.

    Args:
        network: never modified.
        device, precision: where and how the copy computes.
        backend: as in `UNetForward`.
    """

    def __init__(
        self, network: UNetInitializer, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device, self._dtype = network, device, precision.state
        self.folded = fold_unet(network, device, self._dtype)
        self.operation = UNetForward(self.folded.weights, backend=backend)

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self.folded = fold_unet(self._network, self._device, self._dtype)
        self.operation.load(self.folded.weights)

    def __call__(self, x: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """The proposal for x at levels (1,) or (batch,), and labels likewise."""
        return self.operation(x, self.folded.at(logsnr, label))


class PointInitializerPlan:
    """A folded copy of an `MLPInitializer`; arguments as of `InitializerPlan`, but for the room."""

    def __init__(
        self, network: MLPInitializer, *, device: torch.device, precision: Precision
    ) -> None:
        self._network, self._device, self._dtype = network, device, precision.state
        self.refresh()

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self.folded = fold_points(self._network, self._device, self._dtype)

    def __call__(self, x: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """The proposal for x at levels (1,) or (batch,), and labels likewise."""
        return self.folded.forward(x, *self.folded.at(logsnr, label))


def initializer_plan(
    network: nn.Module,
    *,
    device: torch.device,
    precision: Precision,
    backend: str = "auto",
    compile: bool = False,
) -> InitializerPlan | PointInitializerPlan | FrozenNetwork:
    """The fastest plan that an initializer has; a subclass of ours may compute something else.

    ``compile`` is for the others: ``torch.compile``.
    """
    if type(network) is UNetInitializer:
        return InitializerPlan(network, device=device, precision=precision, backend=backend)
    if type(network) is MLPInitializer:
        return PointInitializerPlan(network, device=device, precision=precision)
    return FrozenNetwork(network, device=device, precision=precision, compile=compile)
