"""A model's networks as chains use them: frozen, and computed by the fastest means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast.engine.select import frozen_energy, frozen_initializer
from cdrl_fast.engine.steps import EnergyAt
from cdrl_fast.engine.terms import Terms, Weight, combined, weighted
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.langevin_step import BACKENDS
from cdrl_fast.precision import EXACT, Precision


@dataclass
class Proposal:
    """The initializers at one level, Σ weight_i initializer_i(·, λ_t, label_i): y_0's mean.

    Attributes:
        weights: one per part.
        parts: for each part a network's forward, and its arguments besides x.
    """

    weights: tuple[Weight, ...]
    parts: Sequence[tuple[Callable[..., Tensor], tuple[Tensor | None, ...]]]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the proposal for x, in x's shape."""
        return combined(self.weights, (forward(x, *inputs) for forward, inputs in self.parts))

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        weights = [w for w in self.weights if isinstance(w, Tensor)]
        return weights + [t for _, inputs in self.parts for t in inputs if t is not None]


class FrozenModel:
    """A private copy of networks that are sampled together; `refresh` follows the originals.

    Args:
        networks: each model's energy and initializer, the latter None for all or for none; copied,
            never modified.
        device, precision: where and how the copy computes.
        backend: of noise, Langevin steps and networks, as in `Sampler`.
        compile: whether networks that are not the library's go through ``torch.compile``.

    Attributes:
        backend: the backend of noise and Langevin steps.
        noise: keyword arguments of `Key.normal` for noise as the state: device, dtype, backend.
        precise: whether energies are computed in the precision of the state. Only then can those
            of neighbouring states be compared.

    Raises:
        ValueError, BackendUnavailable: a precision or backend that is unknown or not available.
    """

    def __init__(
        self,
        networks: Sequence[tuple[nn.Module, nn.Module | None]],
        *,
        device: torch.device,
        precision: Precision,
        backend: str = "auto",
        compile: bool = False,
    ) -> None:
        self.device, self.dtype = device, precision.state
        self.precise = precision.name in EXACT
        self.backend = choose("Sampler", backend, device, self.dtype, BACKENDS)
        self.noise: dict[str, Any] = {
            "device": device,
            "dtype": self.dtype,
            "backend": self.backend,
        }
        options: dict[str, Any] = {
            "device": device,
            "precision": precision,
            # Networks have no kernels in CUDA C++; on CPUs "auto" means the native ones.
            "backend": backend if backend in ("reference", "triton") else "auto",
            "compile": compile,
        }
        self._sources = [n for pair in networks for n in pair if n is not None]
        self._energies = [frozen_energy(energy, **options) for energy, _ in networks]
        self._initializers = [
            frozen_initializer(initializer, **options)
            for _, initializer in networks
            if initializer is not None
        ]
        self._networks = (*self._energies, *self._initializers)
        self._versions = self._current_versions()
        # Kernels for GPUs share memory between calls; those for CPUs may run in several threads.
        shared = any(network.supports_graph for network in self._networks)
        self._lock = threading.RLock() if shared else nullcontext()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Follow the originals, and keep other threads and autograd out for a block."""
        # Tensors of inference mode could not be written into by later calls outside it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self.refresh()
            yield

    def refresh(self) -> bool:
        """Copy the networks' weights if they have changed, and return whether they had."""
        versions = self._current_versions()
        if versions == self._versions:
            return False
        for network in self._networks:
            network.refresh()
        self._versions = versions
        return True

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Return the most bytes that an energy's gradient takes; None if unknown for any energy."""
        sizes = [energy.working_memory(batch, shape) for energy in self._energies]
        known = [size for size in sizes if size is not None]
        return max(known) if len(known) == len(sizes) else None

    @property
    def supports_graph(self) -> bool:
        """Whether steps are launches alone, and `refresh` writes weights into the same memory."""
        return all(network.supports_graph for network in self._networks)

    def buffers(self) -> list[Tensor]:
        """Return the memory between the launches of a step, as it is now."""
        return [buffer for energy in self._energies for buffer in energy.buffers()]

    def _current_versions(self) -> list[tuple[int, int]]:
        tensors = (t for n in self._sources for t in (*n.parameters(), *n.buffers()))
        # Tensors made in inference mode count no versions.
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]

    def _logsnr(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def proposal(self, logsnr: float, terms: Sequence[Terms]) -> Proposal | None:
        """Return the initializers at λ_t for each network's terms; None without initializers."""
        if not self._initializers:
            return None
        level = self._logsnr(logsnr)
        weights: list[Weight] = []
        parts = []
        for initializer, network_terms in zip(self._initializers, terms, strict=True):
            weights += network_terms.initializer_weights
            parts += [
                (initializer.forward, initializer.level_inputs(level, label))
                for label in network_terms.labels
            ]
        return Proposal(tuple(weights), parts)

    @torch.no_grad()
    def at(self, logsnr: float, terms: Sequence[Terms]) -> EnergyAt:
        """Return the energies at λ_{t-1} for each network's terms.

        What depends on level and labels alone is computed here, once.
        """
        level = self._logsnr(logsnr)
        parts = [energy.at(level, t) for energy, t in zip(self._energies, terms, strict=True)]
        return weighted((1.0,) * len(parts), parts)
