"""Linear combinations of a network's conditions: guidance, products, negations, mixtures.

Where a network takes rows and labels a sample, the m terms of n samples are one batch of m·n, one
term's samples after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Weight = float | Tensor
"""Of a term: one number, or one a sample as (batch,)."""


@dataclass(frozen=True)
class Terms:
    """A linear combination of one network's conditions: Σ weight_i f(y, λ, label_i).

    Attributes:
        weights: of the log-densities, one a term.
        labels: one int64 tensor a term, (batch,) or (1,), or None for an unconditional network.
        shares: of the initializer's means, one a term; None: the weights.
    """

    weights: tuple[Weight, ...] = (1.0,)
    labels: tuple[Tensor | None, ...] = (None,)
    shares: tuple[Weight, ...] | None = None

    @classmethod
    def guided(cls, label: Tensor | None, guidance: float) -> Terms:
        """(1 + w) f(·|c) - w f(·|∅); the plain condition at w = 0."""
        if guidance == 0.0 or label is None:
            return cls((1.0,), (label,))
        return cls((1.0 + guidance, -guidance), (label, torch.zeros_like(label[:1])))

    @property
    def of_initializer(self) -> tuple[Weight, ...]:
        """The weights of the initializer's means."""
        return self.weights if self.shares is None else self.shares

    def slice(self, start: int, stop: int) -> Terms:
        """The terms of samples start … stop - 1."""

        def weights(given: tuple[Weight, ...]) -> tuple[Weight, ...]:
            return tuple(w[start:stop] if isinstance(w, Tensor) else w for w in given)

        labels = tuple(
            label if label is None or len(label) == 1 else label[start:stop]
            for label in self.labels
        )
        shares = None if self.shares is None else weights(self.shares)
        return Terms(weights(self.weights), labels, shares)

    def in_tensors(self, device: torch.device, dtype: torch.dtype) -> Terms:
        """The same with all weights in tensors, (1,) or (batch,), which others can be copied to."""

        def tensors(given: tuple[Weight, ...]) -> tuple[Weight, ...]:
            return tuple(
                w.to(device, dtype)
                if isinstance(w, Tensor)
                else torch.full((1,), w, device=device, dtype=dtype)
                for w in given
            )

        shares = None if self.shares is None else tensors(self.shares)
        return Terms(tensors(self.weights), self.labels, shares)


class EnergyAt(Protocol):
    """A network's energy at a level, for given conditions."""

    def value(self, y: Tensor) -> Tensor:
        """(batch,)."""

    def gradient(self, y: Tensor) -> Tensor:
        """∇ of the value, of y's shape; the next call may write into the same memory."""

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""


@dataclass
class Weighted:
    """Σ weight_i part_i, one part after the other."""

    weights: tuple[Weight, ...]
    parts: Sequence[EnergyAt]

    def value(self, y: Tensor) -> Tensor:
        """(batch,)."""
        return combined(self.weights, (part.value(y) for part in self.parts))

    def gradient(self, y: Tensor) -> Tensor:
        """∇ of the value, of y's shape."""
        return combined(self.weights, (part.gradient(y) for part in self.parts))

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""
        values, gradients = zip(*(part.value_and_gradient(y) for part in self.parts), strict=True)
        return combined(self.weights, values), combined(self.weights, gradients)

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""
        tensors = [w for w in self.weights if isinstance(w, Tensor)]
        return tensors + [tensor for part in self.parts for tensor in part.inputs()]


def weighted(weights: tuple[Weight, ...], parts: Sequence[EnergyAt]) -> EnergyAt:
    """Σ weight_i part_i; the part itself where there is one of weight 1."""
    plain = len(weights) == 1 and not isinstance(weights[0], Tensor) and weights[0] == 1.0
    return parts[0] if plain else Weighted(weights, parts)


def combined(weights: tuple[Weight, ...], parts: Iterable[Tensor]) -> Tensor:
    """Σ weight_i part_i of tensors (batch, …)."""
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):
        part = scaled(weight, part)
        total = part if total is None else total + part
    assert total is not None
    return total


def scaled(weight: Weight, part: Tensor) -> Tensor:
    """weight · part, either of which may be (1, …) for all samples."""
    if isinstance(weight, Tensor):
        return weight.to(part.dtype).view(-1, *[1] * (part.dim() - 1)) * part
    return part if weight == 1.0 else weight * part


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Terms' tensors, each (1, …) or (batch, …), one below the other: of one length, if any's."""
    if len(parts) == 1:
        return parts[0]
    batch = next((len(part) for part in parts if len(part) != 1), 1)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts])


def for_batch(rows: Tensor, terms: int, batch: int) -> Tensor:
    """What `stacked` gave, with a row for each sample of each term; one term's may serve all."""
    if terms == 1 or len(rows) == terms * batch:
        return rows
    return rows.repeat_interleave(batch, dim=0)


def repeated(y: Tensor, terms: int) -> Tensor:
    """The batch once a term."""
    return y if terms == 1 else y.repeat(terms, *[1] * (y.dim() - 1))


def split(parts: Tensor, terms: int) -> tuple[Tensor, ...]:
    """Each term's batch, as views."""
    batch = len(parts) // terms
    return tuple(parts[i * batch : (i + 1) * batch] for i in range(terms))


def summed(parts: Tensor, terms: int) -> Tensor:
    """Σ over terms, in the first one's memory, in one order whatever the batch."""
    total, *rest = split(parts, terms)
    for part in rest:
        total += part
    return total
