"""The library's own energy networks: folded weights, and gradients without autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cdrl_fast.engine.folding.energy import fold_mlp, fold_resnet
from cdrl_fast.engine.resnet_gpu import LevelMaps, ResNetPasses, level_maps
from cdrl_fast.engine.terms import (
    EnergyAt,
    Terms,
    for_batch,
    repeated,
    scaled,
    stacked,
    summed,
    weighted,
)
from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.ops.energy_gradient import EnergyGradient
from cdrl_fast.ops.mlp_chain import mlp_chain_, value_and_gradient
from cdrl_fast.precision import Precision

Operation = TypeVar("Operation", EnergyGradient, ResNetPasses)


@dataclass
class CpuImageEnergyAt:
    """A `ResNetEnergy` at given levels and labels, or a linear combination of such.

    Attributes:
        rows, head: `stacked` ones of the terms, each head times its weight.
    """

    plan: CpuImageEnergy
    rows: Tensor
    head: Tensor
    terms: int
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""
        return [self.rows, self.head]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return summed(self.plan.operation(y.shape).value(*self._batch(y)), self.terms)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y), in memory that the next call writes again."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""
        images, rows, head = self._batch(y)
        self._out = _like(images, self._out)
        operation = self.plan.operation(y.shape)
        value, _ = operation.value_and_gradient(images, rows, head, out=self._out)
        return summed(value, self.terms), summed(self._out, self.terms)

    def _batch(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, head = (for_batch(part, self.terms, len(y)) for part in (self.rows, self.head))
        return repeated(y, self.terms), rows, head


class ImageEnergy(ABC, Generic[Operation]):
    """A folded copy of a `ResNetEnergy`, and its operation for each size of images.

    Args:
        network: never modified.
        device, precision: where and how the copy computes.
        backend: of the operation.
    """

    def __init__(
        self, network: ResNetEnergy, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device = network, device
        self._precision, self._backend = precision, backend
        self._operations: dict[tuple[int, int], Operation] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes the network's weights as they are now."""
        self._folded = fold_resnet(self._network, self._device, self._precision.state)
        for operation in self._operations.values():
            operation.load(self._folded.weights)

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """The energy at levels (1,) or (batch,), and labels likewise: one batch for all terms.

        f is linear in its head, so that a term's weight is in its head.
        """
        rows, heads = zip(*(self._folded.at(logsnr, label) for label in terms.labels), strict=True)
        weighted_heads = [scaled(w, head) for w, head in zip(terms.weights, heads, strict=True)]
        return self._given(stacked(rows), stacked(weighted_heads), len(terms.labels))

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient takes for a batch of states, besides them and the weights.

        A linear combination's batch is as many states as it has terms, for each of its samples.
        """
        return self.operation(shape).working_memory(batch)

    def operation(self, shape: Sequence[int]) -> Operation:
        """The operation for images of a size."""
        height, width = shape[-2:]
        if (height, width) not in self._operations:
            self._operations[height, width] = self._made(height, width)
        return self._operations[height, width]

    @abstractmethod
    def _given(self, rows: Tensor, head: Tensor, terms: int) -> EnergyAt: ...

    @abstractmethod
    def _made(self, height: int, width: int) -> Operation: ...


class CpuImageEnergy(ImageEnergy[EnergyGradient]):
    """By `EnergyGradient`: a whole gradient in one call."""

    def _given(self, rows: Tensor, head: Tensor, terms: int) -> CpuImageEnergyAt:
        return CpuImageEnergyAt(self, rows, head, terms)

    def _made(self, height: int, width: int) -> EnergyGradient:
        weights, half = self._folded.weights, self._precision.half
        return EnergyGradient(weights, height, width, bfloat16=half, backend=self._backend)


@dataclass
class GpuImageEnergyAt:
    """`CpuImageEnergyAt` by the operations for GPUs."""

    plan: GpuImageEnergy
    level_maps: LevelMaps
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""
        return [self.level_maps.flat]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.plan.operation(y.shape).value(y, self.level_maps)

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y), in memory that the next call writes again."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""
        self._out = _like(y, self._out)
        return self.plan.operation(y.shape).value_and_gradient(y, self.level_maps, out=self._out)

    def step_(self, y: Tensor, anchor: Tensor | None, *, drift: Any, **numbers: Any) -> None:
        """A Langevin step of y in place; see `stem_langevin_`."""
        drift = drift * self.level_maps.unit
        self.plan.operation(y.shape).step_(y, self.level_maps, anchor, drift=drift, **numbers)


class GpuImageEnergy(ImageEnergy[ResNetPasses]):
    """By the operations for GPUs."""

    def _given(self, rows: Tensor, head: Tensor, terms: int) -> GpuImageEnergyAt:
        weights = self._folded.weights
        return GpuImageEnergyAt(self, level_maps(weights, rows, head, self._precision, terms=terms))

    def buffers(self) -> list[Tensor]:
        """Memory that the largest batches so far have needed."""
        return [buffer for passes in self._operations.values() for buffer in passes.buffers()]

    def _made(self, height: int, width: int) -> ResNetPasses:
        weights = self._folded.weights
        return ResNetPasses(
            weights, height, width, precision=self._precision, backend=self._backend
        )


@dataclass
class PointEnergyAt:
    """An `MLPEnergy` at given levels and labels."""

    plan: PointEnergy
    rows: Tensor

    def inputs(self) -> list[Tensor]:
        """What level and labels decide."""
        return [self.rows]

    def value(self, y: Tensor) -> Tensor:
        """f(y): (batch,)."""
        return self.value_and_gradient(y)[0]

    def gradient(self, y: Tensor) -> Tensor:
        """∇f(y): (batch, dim)."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""
        return value_and_gradient(self.plan.folded.program, y, self.rows, **self.plan.options)

    def chain(self, y: Tensor, anchor: Tensor | None, **options: Any) -> None:
        """Langevin steps of y in place, all in one call; see `mlp_chain_`."""
        program = self.plan.folded.program
        mlp_chain_(program, y, anchor, rows=self.rows, **self.plan.options, **options)


class PointEnergy:
    """A folded copy of an `MLPEnergy`; arguments as of `ImageEnergy`."""

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

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """The energy at levels (1,) or (batch,), and labels likewise."""
        parts = [PointEnergyAt(self, self.folded.at(logsnr, label)) for label in terms.labels]
        return weighted(terms.weights, parts)

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """None: a chunk of points goes through all steps in a cache."""
        return None


def _like(y: Tensor, held: Tensor) -> Tensor:
    """``held``, or other dense memory where it has not y's shape."""
    return held if held.shape == y.shape else torch.empty(y.shape, dtype=y.dtype, device=y.device)
