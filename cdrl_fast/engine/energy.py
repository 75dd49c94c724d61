"""Frozen energies of the library's own networks: folded weights, gradients without autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from cdrl_fast.engine.folding.energy import fold_mlp, fold_resnet
from cdrl_fast.engine.resnet_gpu import LevelMaps, ResNetPasses, level_maps
from cdrl_fast.engine.steps import Context, EnergyAt, take_steps
from cdrl_fast.engine.terms import (
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
from cdrl_fast.ops.phase import Phase
from cdrl_fast.precision import Precision

Operation = TypeVar("Operation", EnergyGradient, ResNetPasses)


@dataclass
class CpuImageEnergyAt(EnergyAt):
    """A `CpuImageEnergy` at fixed levels and labels, or a linear combination of several.

    Attributes:
        energy: the energy whose operation computes.
        rows, head: inputs of `EnergyGradient`, `stacked` over the terms; each term's head is
            multiplied by the term's weight.
        terms: number of terms.
    """

    energy: CpuImageEnergy
    rows: Tensor
    head: Tensor
    terms: int
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        return [self.rows, self.head]

    def value(self, y: Tensor) -> Tensor:
        """Return f(y): (batch,)."""
        return summed(self.energy.operation(y.shape).value(*self._batch(y)), self.terms)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        images, rows, head = self._batch(y)
        self._out = _buffer_for(images, self._out)
        operation = self.energy.operation(y.shape)
        value, _ = operation.value_and_gradient(images, rows, head, out=self._out)
        return summed(value, self.terms), summed(self._out, self.terms)

    def _batch(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, head = (for_batch(part, self.terms, len(y)) for part in (self.rows, self.head))
        return repeated(y, self.terms), rows, head


class ImageEnergy(ABC, Generic[Operation]):
    """A folded copy of a `ResNetEnergy`, with one operation per image size.

    Args:
        network: copied, never modified.
        device, precision: where and how the copy computes.
        backend: of the operations.

    Attributes:
        supports_graph: see `FrozenModel`.
    """

    supports_graph = False

    def __init__(
        self, network: ResNetEnergy, *, device: torch.device, precision: Precision, backend: str
    ) -> None:
        self._network, self._device = network, device
        self._precision, self._backend = precision, backend
        self._operations: dict[tuple[int, int], Operation] = {}
        self.refresh()

    def refresh(self) -> None:
        """Copy the network's current weights."""
        self._folded = fold_resnet(self._network, self._device, self._precision.state)
        for operation in self._operations.values():
            operation.load(self._folded.weights)

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """Return the energy at levels (1,) or (batch,), all terms as one batch.

        f is linear in its head, so each term's weight is multiplied into its head.
        """
        rows, heads = zip(*(self._folded.at(logsnr, label) for label in terms.labels), strict=True)
        weighted_heads = [scaled(w, head) for w, head in zip(terms.weights, heads, strict=True)]
        return self._energy_at(stacked(rows), stacked(weighted_heads), len(terms.labels))

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Return the bytes that a gradient takes, besides states and weights; None if unknown.

        ``batch`` counts states: a linear combination has one per sample and term.
        """
        return self.operation(shape).working_memory(batch)

    def buffers(self) -> list[Tensor]:
        """Return the memory between launches, as large as the largest batches have needed."""
        return []

    def operation(self, shape: Sequence[int]) -> Operation:
        """Return the operation for images of a shape (…, height, width)."""
        height, width = shape[-2:]
        if (height, width) not in self._operations:
            self._operations[height, width] = self._create_operation(height, width)
        return self._operations[height, width]

    @abstractmethod
    def _energy_at(self, rows: Tensor, head: Tensor, terms: int) -> EnergyAt: ...

    @abstractmethod
    def _create_operation(self, height: int, width: int) -> Operation: ...


class CpuImageEnergy(ImageEnergy[EnergyGradient]):
    """An `ImageEnergy` on `EnergyGradient`, which computes a gradient in one call."""

    def _energy_at(self, rows: Tensor, head: Tensor, terms: int) -> CpuImageEnergyAt:
        return CpuImageEnergyAt(self, rows, head, terms)

    def _create_operation(self, height: int, width: int) -> EnergyGradient:
        weights, half = self._folded.weights, self._precision.half
        return EnergyGradient(weights, height, width, bfloat16=half, backend=self._backend)


@dataclass
class GpuImageEnergyAt(EnergyAt):
    """A `GpuImageEnergy` at fixed levels and labels, or a linear combination of several.

    Attributes:
        energy: the energy whose operation computes.
        level_maps: inputs of `ResNetPasses`.
    """

    energy: GpuImageEnergy
    level_maps: LevelMaps
    _out: Tensor = field(default_factory=lambda: torch.empty(0))

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        return [self.level_maps.flat]

    def value(self, y: Tensor) -> Tensor:
        """Return f(y): (batch,)."""
        return self.energy.operation(y.shape).value(y.contiguous(), self.level_maps)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        self._out = _buffer_for(y, self._out)
        operation = self.energy.operation(y.shape)
        return operation.value_and_gradient(y.contiguous(), self.level_maps, out=self._out)

    def langevin_(self, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context) -> None:
        """Take the steps of a phase; each is one kernel with the stem's gradient."""
        operation, positions = self.energy.operation(y.shape), phase.key.steps(phase.steps)
        drift = phase.drift * self.level_maps.unit

        def step(k: int) -> None:
            operation.step_(
                y,
                self.level_maps,
                anchor,
                drift=drift,
                pull=phase.pull,
                noise_std=phase.noise_std,
                rescale=phase.rescale if k == phase.steps else 1.0,
                rng=next(positions),
                first_bad=context.first_bad,
            )

        take_steps(step, phase.steps, context)


class GpuImageEnergy(ImageEnergy[ResNetPasses]):
    """An `ImageEnergy` on `ResNetPasses`, the operations for GPUs."""

    supports_graph = True

    def _energy_at(self, rows: Tensor, head: Tensor, terms: int) -> GpuImageEnergyAt:
        weights = self._folded.weights
        return GpuImageEnergyAt(self, level_maps(weights, rows, head, self._precision, terms=terms))

    def buffers(self) -> list[Tensor]:
        return [buffer for passes in self._operations.values() for buffer in passes.buffers()]

    def _create_operation(self, height: int, width: int) -> ResNetPasses:
        weights = self._folded.weights
        return ResNetPasses(
            weights, height, width, precision=self._precision, backend=self._backend
        )


@dataclass
class PointEnergyAt(EnergyAt):
    """A `PointEnergy` at fixed levels and labels.

    Attributes:
        energy: the energy whose program computes.
        rows: the program's inputs that depend on level and label.
    """

    energy: PointEnergy
    rows: Tensor

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level and labels alone."""
        return [self.rows]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        return value_and_gradient(self.energy.folded.program, y, self.rows, **self.energy.options)

    def langevin_(self, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context) -> None:
        """Take the steps of a phase, in one kernel call unless somebody sees each step."""
        if context.after_step is not None and context.per_step:
            super().langevin_(y, anchor, phase, context)
            return
        program, first_bad = self.energy.folded.program, context.first_bad
        options = {"rows": self.rows, "first_bad": first_bad, **self.energy.options}
        mlp_chain_(program, y, anchor, phase=phase, **options)
        if context.after_step is not None:
            context.after_step(phase.steps)


class PointEnergy:
    """A folded copy of an `MLPEnergy`; arguments as `ImageEnergy`."""

    supports_graph = False

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
        """Copy the network's current weights."""
        self.folded = fold_mlp(self._network, self._device, self._dtype)

    def at(self, logsnr: Tensor, terms: Terms) -> EnergyAt:
        """Return the energy at levels (1,) or (batch,), one term after the other."""
        parts = [PointEnergyAt(self, self.folded.at(logsnr, label)) for label in terms.labels]
        return weighted(terms.weights, parts)

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Return None: a chunk of points goes through all steps inside a cache."""
        return None

    def buffers(self) -> list[Tensor]:
        """Return no memory: a call keeps nothing between launches."""
        return []


def _buffer_for(y: Tensor, buffer: Tensor) -> Tensor:
    """Return ``buffer`` if it has y's shape, else new dense memory of that shape."""
    if buffer.shape == y.shape:
        return buffer
    return torch.empty(y.shape, dtype=y.dtype, device=y.device)
