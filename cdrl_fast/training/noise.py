"""The random numbers of a training batch, from the noise stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cdrl_fast.ops import langevin_step_, normal, philox
from cdrl_fast.ops.philox import Purpose


@dataclass(frozen=True)
class TrainingDraws:
    """The training draws of a batch, by index.

    Attributes:
        seed: seed of the run.
        first_sample: index in the noise stream of the batch's first sample: a number; or an int64
            tensor of no dimensions on the device, which the kernels read, so that a captured graph
            can be replayed with another index.
        device, dtype: device and dtype of the noise.
    """

    seed: int
    first_sample: int | Tensor
    device: torch.device
    dtype: torch.dtype

    def skip(self, samples: int) -> TrainingDraws:
        """Return the draws of the part of the batch that begins after so many samples."""
        return replace(self, first_sample=self.first_sample + samples)

    def rng(self, index: int) -> tuple[int, int, int] | Tensor:
        """Return (seed, draw, first sample) for kernels, or an `rng_state` on the device."""
        draw = Purpose.TRAINING.draw(index)
        if not isinstance(self.first_sample, Tensor):
            return self.seed, draw, self.first_sample
        # Filled on the device, because a captured graph cannot copy from the host.
        state = torch.zeros(4, dtype=torch.int64, device=self.device)
        state[0].fill_(philox.signed(self.seed))
        state[1].fill_(draw)
        state[2].copy_(self.first_sample)
        return state

    def normal(self, shape: Sequence[int], index: int) -> Tensor:
        """Return standard normal noise, in the draws' dtype."""
        if not isinstance(self.first_sample, Tensor):
            return normal(shape, dtype=self.dtype, **self._arguments(index))
        zero = torch.zeros(shape, dtype=self.dtype, device=self.device)
        rng = self.rng(index)
        return langevin_step_(zero, zero, None, drift=0.0, pull=0.0, noise_std=1.0, rng=rng)

    def uniform(self, shape: Sequence[int], index: int) -> Tensor:
        """Return uniform numbers in (0, 1], float32."""
        return philox.uniform(shape, **self._arguments(index))

    def randint(self, samples: int, high: int, index: int) -> Tensor:
        """Return one integer in [0, high) per sample, int64."""
        return philox.randint(samples, high, **self._arguments(index))

    def _arguments(self, index: int) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "draw": Purpose.TRAINING.draw(index),
            "first_sample": self.first_sample,
            "device": self.device,
        }
