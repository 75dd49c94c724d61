"""Any energy network: value and input gradient by autograd, with parameters frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.networks.layers import fix_weights


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


class FrozenModel:
    """A private copy of a model's networks for sampling: eval mode, no gradients to parameters.

    The copy follows the original: `refresh` copies again when a parameter or buffer has changed.
    Level embeddings are computed once for the whole batch.

    Args:
        energy, initializer: the networks; never modified.
        device, dtype: where and in what precision the copy computes.
    """

    def __init__(
        self,
        energy: nn.Module,
        initializer: nn.Module | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        self._sources = [n for n in (energy, initializer) if n is not None]
        self._copies = [
            copy.deepcopy(n).to(device, dtype).eval().requires_grad_(False) for n in self._sources
        ]
        self.energy = self._copies[0]
        self.initializer = self._copies[1] if initializer is not None else None
        self._versions: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> bool:
        """Copies the weights again if they have changed; returns whether they had."""
        tensors = [t for n in self._sources for t in (*n.parameters(), *n.buffers())]
        versions = [(t.data_ptr(), t._version) for t in tensors]
        if versions == self._versions:
            return False
        for source, twin in zip(self._sources, self._copies, strict=True):
            twin.load_state_dict(source.state_dict())
            fix_weights(twin)
        self._versions = versions
        return True

    def _logsnr(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def propose(self, x: Tensor, logsnr: float, terms: Terms) -> Tensor:
        """Σ weight_i initializer(x, λ_t, label_i), the mean of a level's start; x without one."""
        if self.initializer is None:
            return x
        network, level = self.initializer, self._logsnr(logsnr)
        means = (network(x, level, label) for label in terms.labels)
        return _combined(terms.weights, means)

    def value(self, y: Tensor, logsnr: float, terms: Terms) -> Tensor:
        """Σ weight_i f(y, λ_{t-1}, label_i): (batch,)."""
        level = self._logsnr(logsnr)
        values = (self.energy(y, level, label) for label in terms.labels)
        return _combined(terms.weights, values)

    def gradient(self, y: Tensor, logsnr: float, terms: Terms) -> Tensor:
        """∇_y Σ weight_i f(y, λ_{t-1}, label_i): the shape of y."""
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.value(y, logsnr, terms).sum(), y)
        return grad


def _combined(weights: tuple[float, ...], parts: object) -> Tensor:
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):  # type: ignore[call-overload]
        scaled = part if weight == 1.0 else weight * part
        total = scaled if total is None else total + scaled
    assert total is not None
    return total
