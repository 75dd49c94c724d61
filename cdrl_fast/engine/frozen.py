"""A model's networks as chains use them: fast, and never trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.engine.fallback import AutogradEnergy, AutogradPlan
from cdrl_fast.engine.initializer import initializer_plan
from cdrl_fast.engine.plan import EnergyPlan, PlannedEnergy, has_plan
from cdrl_fast.precision import Precision


@dataclass(frozen=True)
class Terms:
    """A linear combination of one network's conditions: Σ weight_i f(y, λ, label_i).

    Attributes:
        weights: one number a term.
        labels: one int64 tensor a term, (batch,) or (1,), or None for an unconditional network.
    """

    weights: tuple[float, ...] = (1.0,)
    labels: tuple[Tensor | None, ...] = (None,)

    @classmethod
    def guided(cls, label: Tensor | None, guidance: float) -> Terms:
        """(1 + w) f(·|c) - w f(·|∅); the plain condition at w = 0."""
        if guidance == 0.0 or label is None:
            return cls((1.0,), (label,))
        return cls((1.0 + guidance, -guidance), (label, torch.zeros_like(label[:1])))

    def slice(self, start: int, stop: int) -> Terms:
        """The terms of samples start … stop - 1."""
        labels = tuple(
            label if label is None or len(label) == 1 else label[start:stop]
            for label in self.labels
        )
        return Terms(self.weights, labels)


@dataclass
class LevelEnergy:
    """Σ weight_i f(·, λ_{t-1}, label_i) of one level."""

    weights: tuple[float, ...]
    parts: list[PlannedEnergy | AutogradEnergy]

    def value(self, y: Tensor) -> Tensor:
        """(batch,)."""
        return _combined(self.weights, (part.value(y) for part in self.parts))

    def gradient(self, y: Tensor) -> Tensor:
        """∇ of the value, of y's shape; the next call may write into the same memory."""
        return _combined(self.weights, (part.gradient(y) for part in self.parts))


def energy_plan(
    network: nn.Module, *, device: torch.device, precision: Precision, backend: str = "auto"
) -> EnergyPlan | AutogradPlan:
    """The fastest plan that a network has: without autograd for the library's own networks."""
    if has_plan(network):
        return EnergyPlan(network, device=device, precision=precision, backend=backend)
    return AutogradPlan(network, device=device, precision=precision)


class FrozenModel:
    """A private copy of a model's networks, which follows the original when refreshed.

    Args:
        energy, initializer: the networks; never modified.
        device, precision: where and how the copy computes.
        backend: the room of the networks.
    """

    def __init__(
        self,
        energy: nn.Module,
        initializer: nn.Module | None,
        *,
        device: torch.device,
        precision: Precision,
        backend: str = "auto",
    ) -> None:
        self.device, self.dtype = device, precision.state
        self._sources = [n for n in (energy, initializer) if n is not None]
        self._energy = energy_plan(energy, device=device, precision=precision, backend=backend)
        self._initializer = (
            initializer_plan(initializer, device=device, precision=precision, backend=backend)
            if initializer is not None
            else None
        )
        self._versions = self._current_versions()

    def refresh(self) -> bool:
        """Takes the weights again if they have changed; returns whether they had."""
        versions = self._current_versions()
        if versions == self._versions:
            return False
        self._energy.refresh()
        if self._initializer is not None:
            self._initializer.refresh()
        self._versions = versions
        return True

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient of the energy takes; None where it is left to autograd."""
        return self._energy.working_memory(batch, shape)

    def _current_versions(self) -> list[tuple[int, int]]:
        tensors = (t for n in self._sources for t in (*n.parameters(), *n.buffers()))
        return [(t.data_ptr(), t._version) for t in tensors]

    def _logsnr(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def propose(self, x: Tensor, logsnr: float, terms: Terms) -> Tensor | None:
        """Σ weight_i initializer(x, λ_t, label_i), a level's mean start; None without one."""
        if self._initializer is None:
            return None
        network, level = self._initializer, self._logsnr(logsnr)
        return _combined(terms.weights, (network(x, level, label) for label in terms.labels))

    @torch.no_grad()
    def at(self, logsnr: float, terms: Terms) -> LevelEnergy:
        """The energy at a level: what depends on level and labels alone is computed here, once."""
        level = self._logsnr(logsnr)
        return LevelEnergy(terms.weights, [self._energy.at(level, label) for label in terms.labels])


def _combined(weights: tuple[float, ...], parts: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):
        scaled = part if weight == 1.0 else weight * part
        total = scaled if total is None else total + scaled
    assert total is not None
    return total
