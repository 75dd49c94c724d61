"""A model's networks as chains use them: frozen, and computed by the fastest means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast.engine.energy import GpuImageEnergy, GpuImageEnergyAt, PointEnergyAt
from cdrl_fast.engine.initializer import ImageInitializer, frozen_initializer
from cdrl_fast.engine.select import frozen_energy
from cdrl_fast.engine.terms import EnergyAt, Terms, Weight, combined, weighted
from cdrl_fast.ops import Key, Phase, langevin_step_
from cdrl_fast.ops.coefficients import Coefficient
from cdrl_fast.precision import Precision


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


@dataclass
class LevelEnergy:
    """The energies at one level, Σ weight_i f(·, λ_{t-1}, label_i), and their Langevin steps."""

    energy: EnergyAt

    def value(self, y: Tensor) -> Tensor:
        """Return the energy's value: (batch,)."""
        return self.energy.value(y)

    def gradient(self, y: Tensor) -> Tensor:
        """Return ∇ of the value, in y's shape; the next call may write into the same memory."""
        return self.energy.gradient(y)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient; costs as much as the gradient."""
        return self.energy.value_and_gradient(y)

    def inputs(self) -> list[Tensor]:
        """Return the tensors that depend on level, labels and weights alone."""
        return self.energy.inputs()

    @torch.no_grad()
    def langevin_(
        self,
        y: Tensor,
        anchor: Tensor | None,
        *,
        steps: int,
        drift: Coefficient,
        pull: Coefficient,
        noise_std: Coefficient,
        rng: tuple[int, int, int] | Tensor,
        first_bad: Tensor,
        rescale: float = 1.0,
        backend: str = "auto",
        each: Callable[[int], None] = lambda step: None,
        observed: bool = False,
    ) -> None:
        """Take Langevin steps of y in place; other arguments as `langevin_step`.

        Args:
            steps: number of steps.
            rng: (seed, draw, first_sample) of the first step; step k adds k - 1 to the draw. Or an
                `rng_state`, which every step advances.
            rescale: factor of y after the last step.
            each: called after each step with k = 1 … steps.
            observed: whether ``each`` reads y. If not, one call may take all steps before ``each``
                is called.
        """
        options = {"drift": drift, "pull": pull, "noise_std": noise_std, "first_bad": first_bad}
        if isinstance(self.energy, PointEnergyAt) and not observed:
            seed, draw, first_sample = rng[:3]
            key = Key(seed, draw - 1, first_sample)
            phase = Phase(steps, drift, pull, noise_std, rescale, key)
            self.energy.chain(y, anchor, phase, first_bad)
            if isinstance(rng, Tensor):
                rng[1] += steps
            for step in range(1, steps + 1):
                each(step)
            return
        for step in range(1, steps + 1):
            step_rng = rng if isinstance(rng, Tensor) else (rng[0], rng[1] + step - 1, rng[2])
            factor = rescale if step == steps else 1.0
            self.step_(y, anchor, rng=step_rng, rescale=factor, backend=backend, **options)
            each(step)

    def step_(self, y: Tensor, anchor: Tensor | None, *, backend: str, **options: Any) -> None:
        """Take one Langevin step of y in place; arguments as `langevin_step_`."""
        if isinstance(self.energy, GpuImageEnergyAt):
            self.energy.step_(y, anchor, **options)
        else:
            langevin_step_(y, self.gradient(y), anchor, backend=backend, **options)


class FrozenModel:
    """A private copy of networks that are sampled together; `refresh` follows the originals.

    Args:
        networks: each model's energy and initializer, the latter None for all or for none; copied,
            never modified.
        device, precision: where and how the copy computes.
        backend: of the networks.
        compile: whether networks that are not the library's go through ``torch.compile``.
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
        options: dict[str, Any] = {
            "device": device,
            "precision": precision,
            "backend": backend,
            "compile": compile,
        }
        self._sources = [n for pair in networks for n in pair if n is not None]
        self._energies = [frozen_energy(energy, **options) for energy, _ in networks]
        self._initializers = [
            frozen_initializer(initializer, **options)
            for _, initializer in networks
            if initializer is not None
        ]
        self._versions = self._current_versions()

    def refresh(self) -> bool:
        """Copy the networks' weights if they have changed, and return whether they had."""
        versions = self._current_versions()
        if versions == self._versions:
            return False
        for network in (*self._energies, *self._initializers):
            network.refresh()
        self._versions = versions
        return True

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Return the most bytes that an energy's gradient takes; None if unknown for any energy."""
        sizes = [energy.working_memory(batch, shape) for energy in self._energies]
        known = [size for size in sizes if size is not None]
        return max(known) if len(known) == len(sizes) else None

    @property
    def steps_by_launches(self) -> bool:
        """Whether steps are launches alone, and `refresh` writes weights into the same memory."""
        return all(isinstance(energy, GpuImageEnergy) for energy in self._energies) and all(
            isinstance(initializer, ImageInitializer) for initializer in self._initializers
        )

    def buffers(self) -> list[Tensor]:
        """Return the memory between the launches of a step, as it is now."""
        energies = (energy for energy in self._energies if isinstance(energy, GpuImageEnergy))
        return [buffer for energy in energies for buffer in energy.buffers()]

    def _current_versions(self) -> list[tuple[int, int]]:
        tensors = (t for n in self._sources for t in (*n.parameters(), *n.buffers()))
        return [(t.data_ptr(), t._version) for t in tensors]

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
    def at(self, logsnr: float, terms: Sequence[Terms]) -> LevelEnergy:
        """Return the energies at λ_{t-1} for each network's terms.

        What depends on level and labels alone is computed here, once.
        """
        level = self._logsnr(logsnr)
        parts = [energy.at(level, t) for energy, t in zip(self._energies, terms, strict=True)]
        return LevelEnergy(weighted((1.0,) * len(parts), parts))
