"""Linear combinations of a network's conditional energies: guidance, products, mixtures.

A network that takes rows and labels per sample computes the m terms of n samples as one batch of
m·n, one term's samples after the other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.engine.steps import EnergyAt

Weight = float | Tensor
"""A term's weight: one number, or one per sample as (batch,)."""


@dataclass(frozen=True)
class Terms:
    """A linear combination of one network's conditional energies: Σ weight_i f(y, λ, label_i).

    Attributes:
        weights: of the log-densities, one per term.
        labels: an int64 tensor (batch,) or (1,) per term, or None for an unconditional network.
        shares: weights of the initializer's means, one per term; None: the same as ``weights``.
    """

    weights: tuple[Weight, ...] = (1.0,)
    labels: tuple[Tensor | None, ...] = (None,)
    shares: tuple[Weight, ...] | None = None

    @property
    def initializer_weights(self) -> tuple[Weight, ...]:
        """Weights of the initializer's means, one per term."""
        return self.weights if self.shares is None else self.shares

    def slice(self, start: int, stop: int) -> Terms:
        """Return the terms of samples start … stop - 1."""

        def part(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
            return tuple(w[start:stop] if isinstance(w, Tensor) else w for w in weights)

        labels = tuple(
            label if label is None or len(label) == 1 else label[start:stop]
            for label in self.labels
        )
        shares = None if self.shares is None else part(self.shares)
        return Terms(part(self.weights), labels, shares)

    def in_tensors(self, device: torch.device, dtype: torch.dtype) -> Terms:
        """Return the terms with all weights as tensors (1,) or (batch,), which a graph can read."""

        def tensors(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
            return tuple(
                w.to(device, dtype)
                if isinstance(w, Tensor)
                else torch.full((1,), w, device=device, dtype=dtype)
                for w in weights
            )

        shares = None if self.shares is None else tensors(self.shares)
        return Terms(tensors(self.weights), self.labels, shares)


@dataclass
class Weighted(EnergyAt):
    """A sum Σ weight_i part_i of energies, computed one part after the other."""

    weights: tuple[Weight, ...]
    parts: Sequence[EnergyAt]

    def value(self, y: Tensor) -> Tensor:
        """Return the sum of the values: (batch,)."""
        return combined(self.weights, (part.value(y) for part in self.parts))

    def gradient(self, y: Tensor) -> Tensor:
        """Return ∇ of the value, in y's shape."""
        return combined(self.weights, (part.gradient(y) for part in self.parts))

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        values, gradients = zip(*(part.value_and_gradient(y) for part in self.parts), strict=True)
        return combined(self.weights, values), combined(self.weights, gradients)

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        tensors = [w for w in self.weights if isinstance(w, Tensor)]
        return tensors + [tensor for part in self.parts for tensor in part.inputs()]


def weighted(weights: tuple[Weight, ...], parts: Sequence[EnergyAt]) -> EnergyAt:
    """Return Σ weight_i part_i; the part itself if there is only one, of weight 1."""
    plain = len(weights) == 1 and not isinstance(weights[0], Tensor) and weights[0] == 1.0
    return parts[0] if plain else Weighted(weights, parts)


def combined(weights: tuple[Weight, ...], parts: Iterable[Tensor]) -> Tensor:
    """Return Σ weight_i part_i of tensors (batch, …)."""
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):
        part = scaled(weight, part)
        total = part if total is None else total + part
    assert total is not None
    return total


def scaled(weight: Weight, part: Tensor) -> Tensor:
    """Return weight · part; either may have one row for all samples."""
    if isinstance(weight, Tensor):
        return weight.to(part.dtype).view(-1, *[1] * (part.dim() - 1)) * part
    return part if weight == 1.0 else weight * part


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return the terms' tensors, each (1, …) or (batch, …), one below the other.

    If one of several terms has a row per sample, the others' single rows are expanded to it.
    """
    if len(parts) == 1:
        return parts[0]
    batch = next((len(part) for part in parts if len(part) != 1), 1)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts])


def for_batch(rows: Tensor, terms: int, batch: int) -> Tensor:
    """Return `stacked` rows as (terms·batch, …); those of a single term may stay one row."""
    if terms == 1 or len(rows) == terms * batch:
        return rows
    return rows.repeat_interleave(batch, dim=0)


def repeated(y: Tensor, terms: int) -> Tensor:
    """Return the batch repeated once per term."""
    return y if terms == 1 else y.repeat(terms, *[1] * (y.dim() - 1))


def split(parts: Tensor, terms: int) -> tuple[Tensor, ...]:
    """Return each term's batch as a view."""
    batch = len(parts) // terms
    return tuple(parts[i * batch : (i + 1) * batch] for i in range(terms))


def summed(parts: Tensor, terms: int) -> Tensor:
    """Return the sum over terms, in the first term's memory.

    Terms are added in one order whatever the batch, so that a sample's bits do not depend on it.
    """
    total, *rest = split(parts, terms)
    for part in rest:
        total += part
    return total
