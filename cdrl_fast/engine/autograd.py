"""Frozen energies of any network: value and input gradient by autograd."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.engine.compiled import compiled_gradient, compiled_value
from cdrl_fast.engine.steps import EnergyAt
from cdrl_fast.engine.terms import (
    Terms,
    combined,
    repeated,
    split,
    stacked,
    weighted,
)
from cdrl_fast.networks.spectral_norm import fix_weights
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.precision import Precision


class FrozenNetwork:
    """A private copy of a network: eval mode, no gradients to parameters, spectral norms fixed.

    Args:
        network: copied, never modified.
        device, precision: where and how the copy computes; half precision is autocast.
        compile: whether values and gradients go through ``torch.compile``, when first needed.

    Attributes:
        supports_graph: see `FrozenModel`.
    """

    supports_graph = False

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        compile: bool = False,
    ) -> None:
        self._source, self._precision, self._device = network, precision, device
        private = copy.deepcopy(network).to(device, precision.state)
        self.network = private.eval().requires_grad_(False)
        self._forward = compiled_value(self.network) if compile else self.network
        self._compiled_gradient = compiled_gradient(self.network) if compile else None
        fix_weights(self.network)

    def refresh(self) -> None:
        """Copy the network's current weights."""
        # Not the source's state_dict(), which has only parts of sharded weights.
        state = self.network.state_dict()
        for named_tensors in (self._source.named_parameters, self._source.named_buffers):
            state |= {k: v for k, v in named_tensors(remove_duplicate=False) if k in state}
        self.network.load_state_dict(state)
        fix_weights(self.network)

    def level_inputs(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the arguments of `forward` besides x."""
        return logsnr, label

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return the network's output, in x's dtype."""
        with self._precision.autocast(self._device), fp32_precision(self._precision.fp32_precision):
            output: Tensor = self._forward(x, logsnr, label)
        return output.to(x.dtype)

    def gradient(self, y: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return ∇ of an energy's value with respect to y."""
        if self._compiled_gradient is not None:
            with (
                self._precision.autocast(self._device),
                fp32_precision(self._precision.fp32_precision),
            ):
                return self._compiled_gradient(y, logsnr, label)
        return self.value_and_gradient(y, logsnr, label)[1]

    def value_and_gradient(
        self, y: Tensor, logsnr: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return an energy's value and its gradient, by autograd."""
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            value = self.forward(y, logsnr, label)
            with fp32_precision(self._precision.fp32_precision):
                (gradient,) = torch.autograd.grad(value.sum(), y)
        return value.detach(), gradient


@dataclass
class AutogradEnergyAt(EnergyAt):
    """An energy at fixed levels and labels, or a linear combination of several, as one batch.

    Attributes:
        network: the frozen energy network.
        logsnr: λ_{t-1}, (1,) or (batch,).
        terms: labels, and the weights of a linear combination.
    """

    network: FrozenNetwork
    logsnr: Tensor
    terms: Terms

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        inputs = (self.logsnr, *self.terms.labels, *self.terms.weights)
        return [tensor for tensor in inputs if isinstance(tensor, Tensor)]

    def value(self, y: Tensor) -> Tensor:
        """Return f(y): (batch,)."""
        return self._combined(self.network.forward(*self._batch(y)))

    def gradient(self, y: Tensor) -> Tensor:
        """Return ∇f(y)."""
        return self._combined(self.network.gradient(*self._batch(y)))

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        value, gradient = self.network.value_and_gradient(*self._batch(y))
        return self._combined(value), self._combined(gradient)

    def _batch(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        labels, logsnr = self.terms.labels, self.logsnr
        terms = len(labels)
        if terms == 1:
            return y, logsnr, labels[0]
        label = stacked([label.expand(len(y)) for label in labels if label is not None])
        return repeated(y, terms), logsnr if len(logsnr) == 1 else repeated(logsnr, terms), label

    def _combined(self, parts: Tensor) -> Tensor:
        return combined(self.terms.weights, split(parts, len(self.terms.labels)))


class AutogradEnergy(FrozenNetwork):
    """The frozen energy of a network that is not the library's; see `FrozenNetwork`."""

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """Return the energy at levels (1,) or (batch,), and labels likewise."""
        if len(terms.labels) > 1 and any(label is None for label in terms.labels):
            # The network may treat None unlike label 0, so the terms cannot be one batch.
            singles = [Terms(labels=(label,)) for label in terms.labels]
            parts = [AutogradEnergyAt(self, logsnr, single) for single in singles]
            return weighted(terms.weights, parts)
        return AutogradEnergyAt(self, logsnr, terms)

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Return None: what autograd stores is known only when it runs."""
        return None

    def buffers(self) -> list[Tensor]:
        """Return no memory: autograd's is allocated by every call."""
        return []
