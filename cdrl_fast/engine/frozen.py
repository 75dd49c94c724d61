"""A model's networks as chains use them: fast, and never trained."""

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
from cdrl_fast.ops import langevin_step_
from cdrl_fast.ops.coefficients import Coefficient
from cdrl_fast.precision import Precision


@dataclass
class Proposal:
    """Σ weight_i initializer_i(·, λ_t, label_i) of one level: its chain's mean start.

    Attributes:
        weights: one a part.
        parts: of each a network's forward, and what it takes besides x.
    """

    weights: tuple[Weight, ...]
    parts: Sequence[tuple[Callable[..., Tensor], tuple[Tensor | None, ...]]]

    def __call__(self, x: Tensor) -> Tensor:
        """Of x's shape."""
        return combined(self.weights, (forward(x, *given) for forward, given in self.parts))

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""
        weights = [w for w in self.weights if isinstance(w, Tensor)]
        return weights + [t for _, given in self.parts for t in given if t is not None]


@dataclass
class LevelEnergy:
    """Σ weight_i f(·, λ_{t-1}, label_i) of one level."""

    of: EnergyAt

    def value(self, y: Tensor) -> Tensor:
        """(batch,)."""
        return self.of.value(y)

    def gradient(self, y: Tensor) -> Tensor:
        """∇ of the value, of y's shape; the next call may write into the same memory."""
        return self.of.gradient(y)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, at the price of the gradient."""
        return self.of.value_and_gradient(y)

    def inputs(self) -> list[Tensor]:
        """What level, labels and weights decide."""
        return self.of.inputs()

    @torch.no_grad()
    def walk(
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
        """Langevin steps of y in place; ``rescale`` follows the last. Arguments of `langevin_step`.

        Args:
            rng: (seed, draw, first_sample) of the first step; each later one draws one further. Or
                an `rng_state`, which is moved on.
            each: called after each step k = 1 … steps; after all of them where one call does all.
            observed: whether y must be up to date whenever ``each`` is called.
        """
        numbers = {"drift": drift, "pull": pull, "noise_std": noise_std, "first_bad": first_bad}
        if isinstance(self.of, PointEnergyAt) and not observed:
            names = ("seed", "draw", "first_sample")
            place = {"rng": rng} if isinstance(rng, Tensor) else dict(zip(names, rng, strict=True))
            self.of.chain(y, anchor, steps=steps, rescale=rescale, **place, **numbers)
            for step in range(1, steps + 1):
                each(step)
            return
        for step in range(1, steps + 1):
            at = rng if isinstance(rng, Tensor) else (rng[0], rng[1] + step - 1, rng[2])
            last = rescale if step == steps else 1.0
            self.step_(y, anchor, rng=at, rescale=last, backend=backend, **numbers)
            each(step)

    def step_(self, y: Tensor, anchor: Tensor | None, *, backend: str, **numbers: Any) -> None:
        """One Langevin step of y in place; arguments of `langevin_step_`."""
        if isinstance(self.of, GpuImageEnergyAt):
            self.of.step_(y, anchor, **numbers)
        else:
            langevin_step_(y, self.gradient(y), anchor, backend=backend, **numbers)


class FrozenModel:
    """A private copy of networks that are sampled together; follows the originals when refreshed.

    Args:
        networks: of each model its energy and its initializer; all have one or none has; never
            modified.
        device, precision: where and how the copy computes.
        backend: the room of the networks.
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
        """Takes the weights again if they have changed; returns whether they had."""
        versions = self._current_versions()
        if versions == self._versions:
            return False
        for plan in (*self._energies, *self._initializers):
            plan.refresh()
        self._versions = versions
        return True

    def working_memory(self, batch: int, shape: tuple[int, ...]) -> int | None:
        """Bytes that a gradient of an energy takes; None where one is left to autograd."""
        sizes = [energy.working_memory(batch, shape) for energy in self._energies]
        known = [size for size in sizes if size is not None]
        return max(known) if len(known) == len(sizes) else None

    @property
    def steps_by_launches(self) -> bool:
        """Whether a step is a list of launches, and weights stay where they are when refreshed."""
        return all(isinstance(energy, GpuImageEnergy) for energy in self._energies) and all(
            isinstance(initializer, ImageInitializer) for initializer in self._initializers
        )

    def buffers(self) -> list[Tensor]:
        """Memory between the launches of a step, as it stands now."""
        plans = (energy for energy in self._energies if isinstance(energy, GpuImageEnergy))
        return [buffer for plan in plans for buffer in plan.buffers()]

    def _current_versions(self) -> list[tuple[int, int]]:
        tensors = (t for n in self._sources for t in (*n.parameters(), *n.buffers()))
        return [(t.data_ptr(), t._version) for t in tensors]

    def _logsnr(self, value: float) -> Tensor:
        return torch.full((1,), value, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def proposal(self, logsnr: float, terms: Sequence[Terms]) -> Proposal | None:
        """The initializers at a level λ_t, for each network's terms; None without any."""
        if not self._initializers:
            return None
        level = self._logsnr(logsnr)
        weights: list[Weight] = []
        parts = []
        for network, of_network in zip(self._initializers, terms, strict=True):
            weights += of_network.of_initializer
            parts += [(network.forward, network.level_inputs(level, t)) for t in of_network.labels]
        return Proposal(tuple(weights), parts)

    @torch.no_grad()
    def at(self, logsnr: float, terms: Sequence[Terms]) -> LevelEnergy:
        """The energies at a level, for each network's terms.

        What depends on level and labels alone is computed here, once.
        """
        level = self._logsnr(logsnr)
        parts = [plan.at(level, t) for plan, t in zip(self._energies, terms, strict=True)]
        return LevelEnergy(weighted((1.0,) * len(parts), parts))
