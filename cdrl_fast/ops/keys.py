"""Keys of the noise stream, and the one table of which draws are whose.

A draw is 2²⁴ · purpose + index. `ChainKeys`, `TrainingKeys` and the functions below are the only
code that computes draws: they give every random number of a chain or of training a key of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl_fast.ops import philox
from cdrl_fast.ops.langevin_step import langevin_step_
from cdrl_fast.ops.normal import normal

STEPS_PER_LEVEL = 2**16
"""Draws of a level; correctors use the second half."""
MAX_PROPOSAL_DRAWS = 2**15
"""Draws of a level for its proposals and steps where there are correctors or several passes."""
FIRST_STEP = 2**31
"""Draw of the first step of `langevin`; the lower half of the draws is for levels and training."""
MAX_ADJUSTED_SAMPLES = 2**62
"""Samples of an adjusted chain without levels: its acceptance numbers lie beyond them."""


class Purpose(IntEnum):
    """Purpose of a draw; draw = purpose · 2²⁴ + index, so that purposes never share numbers."""

    SAMPLING = 0
    TRAINING = 1
    INPAINTING = 2
    ACCEPTANCE = 3
    MIXTURE = 4
    SCORE = 5

    def draw(self, index: int) -> int:
        """Return the draw of this purpose with an index in [0, 2²⁴)."""
        return int(self) * 2**24 + index


class Key(NamedTuple):
    """A position in the noise stream; ``key + k`` is k draws further.

    Attributes:
        seed: 64-bit integer.
        draw: number of the draw, 0 to 2³² - 1.
        first_sample: index of the batch's first sample. ``seed`` and ``first_sample`` may be int64
            tensors () on a device instead, whose contents a captured graph reads at each replay.

    Examples:
        >>> from cdrl_fast.ops import Key
        >>> Key(seed=1, draw=5) + 2
        Key(seed=1, draw=7, first_sample=0)
    """

    seed: int | Tensor
    draw: int
    first_sample: int | Tensor = 0

    def __add__(self, draws: int) -> Key:  # type: ignore[override]
        return Key(self.seed, self.draw + draws, self.first_sample)

    def skip(self, samples: int) -> Key:
        """Return the key of the part of the batch that begins after so many samples."""
        return self._replace(first_sample=self.first_sample + samples)

    @property
    def acceptance(self) -> Key:
        """The key of the uniform number that accepts the step drawn at this key."""
        if self.draw < FIRST_STEP:
            return self + (Purpose.ACCEPTANCE.draw(0) - Purpose.SAMPLING.draw(0))
        return self.skip(MAX_ADJUSTED_SAMPLES)

    def rng(self) -> tuple[int, int, int] | Tensor:
        """Return the key as kernels take it: as numbers, or as an `rng_state` on its device."""
        tensors = [value for value in self if isinstance(value, Tensor)]
        if not tensors:
            return self  # type: ignore[return-value]
        # Written on the device, because a captured graph cannot copy from the host.
        state = torch.zeros(4, dtype=torch.int64, device=tensors[0].device)
        seed = self.seed if isinstance(self.seed, Tensor) else philox.signed(self.seed)
        for entry, value in zip(state, (seed, self.draw, self.first_sample), strict=False):
            entry.copy_(value) if isinstance(value, Tensor) else entry.fill_(value)
        return state

    def first_step(self) -> tuple[int, int, int] | Tensor:
        """Return the rng of the first step, drawn at key + 1."""
        return (self + 1).rng()

    def steps(self, count: int) -> Iterator[tuple[int, int, int] | Tensor]:
        """Yield the rng of ``count`` steps, drawn at key + 1, key + 2, …"""
        first = self.first_step()
        if isinstance(first, Tensor):
            yield from DeviceKey(first).steps(count)
        else:
            yield from ((first[0], first[1] + k, first[2]) for k in range(count))

    def normal(
        self,
        shape: Sequence[int],
        *,
        device: torch.device,
        dtype: torch.dtype,
        backend: str = "auto",
    ) -> Tensor:
        """Return standard normal noise.

        Args:
            shape: (batch, …).
            device, dtype, backend: as in `cdrl_fast.normal`.
        """
        rng = self.rng()
        if not isinstance(rng, Tensor):
            return normal(shape, **self._asdict(), device=device, dtype=dtype, backend=backend)
        zero = torch.zeros(tuple(shape), dtype=dtype, device=device)
        return langevin_step_(zero, zero, None, drift=0.0, pull=0.0, noise_std=1.0, rng=rng)

    def uniform(self, shape: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
        """Return uniform float32 numbers in (0, 1] of ``shape`` (batch, …) on ``device``."""
        return philox.uniform(shape, **self._asdict(), device=device)

    def randint(self, samples: int, high: int, *, device: torch.device) -> Tensor:
        """Return one integer in [0, ``high``) per sample: int64 (``samples``,) on ``device``."""
        return philox.randint(samples, high, **self._asdict(), device=device)


@dataclass(frozen=True)
class DeviceKey:
    """A key in an `rng_state`, for graphs of single steps: each kernel advances it by one draw.

    Attributes:
        state: the `rng_state`; its draw is that of the next step.
    """

    state: Tensor

    def first_step(self) -> Tensor:
        """Return the rng of the first step."""
        return self.state

    def steps(self, count: int) -> Iterator[Tensor]:
        """Yield the rng of so many steps: always the same, because every kernel advances it."""
        return repeat(self.state, count)


@dataclass(frozen=True)
class ChainKeys:
    """The keys of a batch of chains of T levels.

    A level has 2¹⁶ draws: the proposal's noise is the first, Langevin step k is k further, whatever
    the number of steps; correctors begin in the middle.

    Attributes:
        seed: seed of the chains.
        first_sample: index of the batch's first sample.
        levels: T.
    """

    seed: int | Tensor
    first_sample: int | Tensor
    levels: int

    def start(self) -> Key:
        """Return the key of x_T."""
        return self._key(Purpose.SAMPLING, 0)

    def proposal(self, t: int, steps: int, pass_index: int = 0) -> Key:
        """Return the key of a proposal at level t; its Langevin step k draws at key + k.

        Args:
            t: the level.
            steps: number of Langevin steps of the level.
            pass_index: number of earlier passes through the level.
        """
        return self._key(Purpose.SAMPLING, self._level(t) + pass_index * (steps + 1))

    def correctors(self, t: int, steps: int, pass_index: int = 0) -> Key:
        """Return the key before a level's correctors, which draw at key + k; see `proposal`."""
        index = self._level(t) + MAX_PROPOSAL_DRAWS - 1 + pass_index * steps
        return self._key(Purpose.SAMPLING, index)

    def known(self, t: int, *, shared: bool) -> Key:
        """Return the key of the noise of known entries of x_t: one for all levels if ``shared``."""
        # x_T counts as the result of a level T + 1, whose index 0 shared noise uses as well.
        return self._key(Purpose.INPAINTING, 0 if shared else self._level(t + 1))

    def renoise(self, t: int, pass_index: int) -> Key:
        """Return the key of the noise from x_{t-1} back to x_t before pass ``pass_index`` ≥ 1."""
        return self._key(Purpose.INPAINTING, self._level(t) + pass_index)

    def selection(self) -> Key:
        """Return the key that selects among candidates."""
        # Index 1 is that of `mask_key`.
        return self._key(Purpose.INPAINTING, 2)

    def component(self, mixture: int) -> Key:
        """Return the key that selects the component of a mixture."""
        return self._key(Purpose.MIXTURE, mixture)

    def density(self, t: int) -> Key:
        """Return the key of the noise at which the log-density of level t is evaluated."""
        return self._key(Purpose.SCORE, t)

    def weighting(self, t: int, index: int) -> Key:
        """Return the key of one of the noises of x_t by which candidates are weighted."""
        return self._key(Purpose.SCORE, self._level(t) + index)

    def step_at(self, draw: int) -> tuple[int, str, int]:
        """Return level, kind ("step" or "corrector") and number of the step with a draw."""
        level, step = self.levels + 1 - (draw >> 16), draw & 0xFFFF
        if step < MAX_PROPOSAL_DRAWS:
            return level, "step", step
        return level, "corrector", step - MAX_PROPOSAL_DRAWS + 1

    def _level(self, t: int) -> int:
        return (self.levels - t + 1) * STEPS_PER_LEVEL

    def _key(self, purpose: Purpose, index: int) -> Key:
        return Key(self.seed, purpose.draw(index), self.first_sample)


@dataclass(frozen=True)
class TrainingKeys:
    """The keys of a training batch.

    Attributes:
        seed: seed of the run.
        first_sample: index of the batch's first sample, iteration · batch size + position; or an
            int64 tensor () on the device.
    """

    seed: int
    first_sample: int | Tensor

    def skip(self, samples: int) -> TrainingKeys:
        """Return the keys of the part of the batch that begins after so many samples."""
        return replace(self, first_sample=self.first_sample + samples)

    def noise(self) -> Key:
        """Return the key of ε in x_t."""
        return self._key(0)

    def posterior(self) -> Key:
        """Return the key of the noise of x_{t-1} without variance reduction."""
        return self._key(1)

    def level(self) -> Key:
        """Return the key of the samples' levels."""
        return self._key(2)

    def label_drop(self) -> Key:
        """Return the key that drops labels."""
        return self._key(3)

    def flip(self) -> Key:
        """Return the key that mirrors images."""
        return self._key(4)

    def dropout(self, layer: int) -> Key:
        """Return the key of a dropout layer's mask."""
        return self._key(16 + layer)

    def proposal(self) -> Key:
        """Return the key of the proposal's noise; Langevin step k draws at key + k."""
        return self._key(2**16)

    def step_at(self, draw: int) -> int:
        """Return the number of the Langevin step with a draw."""
        return draw - self.proposal().draw

    def _key(self, index: int) -> Key:
        return Key(self.seed, Purpose.TRAINING.draw(index), self.first_sample)


def mask_key(seed: int) -> Key:
    """Return the key of random masks for inpainting."""
    return Key(seed, Purpose.INPAINTING.draw(1))


def langevin_key(seed: int, first_step: int, first_sample: int) -> Key:
    """Return the key before the first of `langevin`'s steps, step k of which draws at key + k."""
    return Key(seed, FIRST_STEP + first_step - 1, first_sample)
