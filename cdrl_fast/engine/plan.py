"""The library's own energy networks: folded weights, and a gradient without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, nn

from cdrl_fast.engine.fold import fold_resnet
from cdrl_fast.networks import ResNetEnergy
from cdrl_fast.ops.energy_gradient import EnergyGradient
from cdrl_fast.precision import Precision


def has_plan(network: nn.Module) -> TypeGuard[ResNetEnergy]:
    """Whether the network is one of ours; a subclass may compute something else."""
    return type(network) is ResNetEnergy


@dataclass
class PlannedEnergy:
    """An energy at given levels and labels, of states of one shape after another."""

    plan: EnergyPlan
    rows: Tensor
    head: Tensor
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.plan.operation(y.shape).value(y, self.rows, self.head)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y), in memory that the next call writes again."""
        if self._out.shape != y.shape:
            self._out = torch.empty_like(y, memory_format=torch.contiguous_format)
        self.plan.operation(y.shape).value_and_gradient(y, self.rows, self.head, out=self._out)
        return self._out


class EnergyPlan:
    """A folded copy of one of the library's energy networks.

    Args:
        network: never modified.
        device, precision: where and how the copy computes.
        backend: as in `EnergyGradient`.
    """

    def __init__(
        self, network: ResNetEnergy, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device = network, device
        self._precision, self._backend = precision, backend
        self._operations: dict[tuple[int, int], EnergyGradient] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self.folded = fold_resnet(self._network, self._device, self._precision.state)
        for operation in self._operations.values():
            operation.load(self.folded.weights)

    def at(self, logsnr: Tensor, label: Tensor | None) -> PlannedEnergy:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        rows, head = self.folded.at(logsnr, label)
        return PlannedEnergy(self, rows, head)

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient takes for a batch of states, besides them and the weights."""
        return self.operation(shape).working_memory(batch)

    def operation(self, shape: Sequence[int]) -> EnergyGradient:
        """The operation for images of a size."""
        height, width = shape[-2:]
        if (height, width) not in self._operations:
            self._operations[height, width] = EnergyGradient(
                self.folded.weights,
                height,
                width,
                bfloat16=self._precision.half,
                backend=self._backend,
            )
        return self._operations[height, width]
