"""Any energy network: value and input gradient by autograd, with parameters frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.engine.compiled import compiled_gradient, compiled_value
from cdrl_fast.engine.terms import EnergyAt, Terms, weighted
from cdrl_fast.networks.layers import fix_weights
from cdrl_fast.precision import Precision


class FrozenNetwork:
    """A private copy of a network: eval mode, no gradients to parameters, spectral norms fixed.

    Args:
        network: never modified.
        device, precision: where and how the copy computes; half precision is autocast.
        compile: whether values and gradients go through ``torch.compile``, when first needed.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        compile: bool = False,
    ) -> None:
        self._source, self._precision, self._device = network, precision, device
        twin = copy.deepcopy(network).to(device, precision.state)
        self.network = twin.eval().requires_grad_(False)
        self._forward = compiled_value(self.network) if compile else self.network
        self._compiled_gradient = compiled_gradient(self.network) if compile else None
        fix_weights(self.network)

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self.network.load_state_dict(self._source.state_dict())
        fix_weights(self.network)

    def conditions(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `forward` takes."""
        return logsnr, label

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """The network's value."""
        with self._precision.autocast(self._device):
            result: Tensor = self._forward(x, logsnr, label)
        return result.to(x.dtype)

    def gradient(self, y: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """∇ of an energy's value with respect to y."""
        if self._compiled_gradient is not None:
            with self._precision.autocast(self._device):
                return self._compiled_gradient(y, logsnr, label)
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.forward(y, logsnr, label).sum(), y)
        return gradient


@dataclass
class AutogradEnergy:
    """An energy at given levels and labels."""

    network: FrozenNetwork
    logsnr: Tensor
    label: Tensor | None

    def inputs(self) -> list[Tensor]:
        """What level and labels decide."""
        return [self.logsnr] if self.label is None else [self.logsnr, self.label]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.network.forward(y, self.logsnr, self.label)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y)."""
        return self.network.gradient(y, self.logsnr, self.label)


class AutogradPlan(FrozenNetwork):
    """The plan of an energy network that the library does not know."""

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        parts = [AutogradEnergy(self, logsnr, label) for label in terms.labels]
        return weighted(terms.weights, parts)

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """None: what autograd keeps is known only when it runs."""
        return None
