"""The library's own energy networks: folded weights, and gradients without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdrl_fast.engine.fold import fold_mlp, fold_resnet
from cdrl_fast.engine.passes import Conditions, ResNetPasses, conditions_of
from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.ops.energy_gradient import EnergyGradient
from cdrl_fast.ops.mlp_chain import mlp_chain_, value_and_gradient
from cdrl_fast.precision import Precision


@dataclass
class PlannedImages:
    """A `ResNetEnergy` at given levels and labels."""

    plan: ImagePlan
    rows: Tensor
    head: Tensor
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """What level and labels decide."""
        return [self.rows, self.head]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.plan.operation(y.shape).value(y, self.rows, self.head)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y), in memory that the next call writes again."""
        if self._out.shape != y.shape:
            self._out = torch.empty_like(y, memory_format=torch.contiguous_format)
        operation = self.plan.operation(y.shape)
        operation.value_and_gradient(y, self.rows, self.head, out=self._out)
        return self._out


class ImagePlan:
    """A folded copy of a `ResNetEnergy`.

    Args:
        network: never modified.
        device, precision: where and how the copy computes.
        backend: "native", "reference" or "auto", as in `EnergyGradient`.
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
        self._folded = fold_resnet(self._network, self._device, self._precision.state)
        for operation in self._operations.values():
            operation.load(self._folded.weights)

    def at(self, logsnr: Tensor, label: Tensor | None) -> PlannedImages:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        return PlannedImages(self, *self._folded.at(logsnr, label))

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient takes for a batch of states, besides them and the weights."""
        return self.operation(shape).working_memory(batch)

    def operation(self, shape: Sequence[int]) -> EnergyGradient:
        """The operation for images of a size."""
        height, width = shape[-2:]
        if (height, width) not in self._operations:
            self._operations[height, width] = EnergyGradient(
                self._folded.weights,
                height,
                width,
                bfloat16=self._precision.half,
                backend=self._backend,
            )
        return self._operations[height, width]


@dataclass
class PassedImages:
    """A `ResNetEnergy` at given levels and labels, by the operations for GPUs."""

    plan: PassesPlan
    conditions: Conditions
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """What level and labels decide."""
        return [self.conditions.flat]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.plan.passes(y.shape).value(y, self.conditions)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y), in memory that the next call writes again."""
        if self._out.shape != y.shape:
            self._out = torch.empty_like(y, memory_format=torch.contiguous_format)
        passes = self.plan.passes(y.shape)
        return passes.value_and_gradient(y, self.conditions, out=self._out)[1]

    def step_(self, y: Tensor, anchor: Tensor | None, *, drift: Any, **numbers: Any) -> None:
        """A Langevin step of y in place; see `stem_langevin_`."""
        drift = drift * self.conditions.unit
        self.plan.passes(y.shape).step_(y, self.conditions, anchor, drift=drift, **numbers)


class PassesPlan:
    """A folded copy of a `ResNetEnergy` on a GPU; arguments as of `ImagePlan`."""

    def __init__(
        self, network: ResNetEnergy, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device = network, device
        self._precision, self._backend = precision, backend
        self._passes: dict[tuple[int, int], ResNetPasses] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self._folded = fold_resnet(self._network, self._device, self._precision.state)
        for passes in self._passes.values():
            passes.load(self._folded.weights)

    def at(self, logsnr: Tensor, label: Tensor | None) -> PassedImages:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        rows, head = self._folded.at(logsnr, label)
        return PassedImages(self, conditions_of(self._folded.weights, rows, head, self._precision))

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient takes for a batch of states, besides them and the weights."""
        return self.passes(shape).working_memory(batch)

    def buffers(self) -> list[Tensor]:
        """Memory that the largest batches so far have needed."""
        return [buffer for passes in self._passes.values() for buffer in passes.buffers()]

    def passes(self, shape: Sequence[int]) -> ResNetPasses:
        """The operations for images of a size."""
        height, width = shape[-2:]
        if (height, width) not in self._passes:
            self._passes[height, width] = ResNetPasses(
                self._folded.weights,
                height,
                width,
                precision=self._precision,
                backend=self._backend,
            )
        return self._passes[height, width]


@dataclass
class PlannedPoints:
    """An `MLPEnergy` at given levels and labels."""

    plan: PointPlan
    rows: Tensor

    def inputs(self) -> list[Tensor]:
        """What level and labels decide."""
        return [self.rows]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return value_and_gradient(self.plan.folded.program, y, self.rows, **self.plan.options)[0]

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y): (batch, dim)."""
        return value_and_gradient(self.plan.folded.program, y, self.rows, **self.plan.options)[1]

    def chain(self, y: Tensor, anchor: Tensor | None, **options: Any) -> None:
        """Langevin steps of y in place, all in one call; see `mlp_chain_`."""
        program = self.plan.folded.program
        mlp_chain_(program, y, anchor, rows=self.rows, **self.plan.options, **options)


class PointPlan:
    """A folded copy of an `MLPEnergy`; arguments as of `ImagePlan`."""

    def __init__(
        self, network: MLPEnergy, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device, self._dtype = network, device, precision.state
        self.options: dict[str, Any] = {
            "precision": "bf16" if precision.half else "fp32",
            "backend": backend,
        }
        self.refresh()

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self.folded = fold_mlp(self._network, self._device, self._dtype)

    def at(self, logsnr: Tensor, label: Tensor | None) -> PlannedPoints:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        return PlannedPoints(self, self.folded.at(logsnr, label))

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """None: a chunk of points goes through all steps in a cache."""
        return None
