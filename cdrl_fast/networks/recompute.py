"""Activation checkpointing: modules that compute activations again instead of storing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdrl_fast.networks.kernels import convolve, kernels_of

Recompute = Literal["nothing", "activations", "blocks"]


class Recomputing(nn.Module):
    """A module that can store less for its gradient and compute it again (checkpointing).

    Both computations must be the same function: power iterations run outside of the network (see
    `network_power_iteration`), and dropout masks come from a noise stream.

    Attributes:
        recompute: "nothing"; "activations": norms and activations of the U-Net; or "blocks": all
            that is inside a residual block.
    """

    recompute: Recompute = "nothing"

    def _checkpointed(
        self, scope: Recompute, function: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        """Return function(*inputs), storing the inputs alone if ``scope`` is to be recomputed."""
        if self.recompute == scope and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return function(*inputs)

    def _convolve(self, conv: nn.Module, prepare: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return conv(prepare(*inputs)), storing the inputs alone if activations are recomputed."""
        if kernels_of(conv) is None:
            result: Tensor = conv(self._checkpointed("activations", prepare, *inputs))
        elif self.recompute == "activations":
            result = convolve(conv, prepare, *inputs)
        else:
            result = conv(prepare(*inputs))
        return result


def set_recompute(network: nn.Module, recompute: Recompute) -> None:
    """Set what all modules of a network compute again for their gradients."""
    for module in network.modules():
        if isinstance(module, Recomputing):
            module.recompute = recompute
