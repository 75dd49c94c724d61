"""The noise of a training batch: its place in the noise stream."""

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
    """Draws of a batch, by their index among the training's.

    Attributes:
        seed: of the run.
        first: index of the batch's first sample: a number; or int64 of no dimensions on the
            device, which is read where the draws are made, so that a captured graph can be given
            another one.
        device, dtype: of the noise.
    """

    seed: int
    first: int | Tensor
    device: torch.device
    dtype: torch.dtype

    def after(self, samples: int) -> TrainingDraws:
        """Those of a part of the batch that begins after so many samples."""
        return replace(self, first=self.first + samples)

    def state(self, index: int) -> tuple[int, int, int] | Tensor:
        """The draw as kernels take it: (seed, draw, first sample), or an `rng_state`."""
        draw = Purpose.TRAINING.draw(index)
        if not isinstance(self.first, Tensor):
            return self.seed, draw, self.first
        # Filled on the device: a graph cannot wait for numbers of the host.
        state = torch.zeros(4, dtype=torch.int64, device=self.device)
        state[0].fill_(philox.signed(self.seed))
        state[1].fill_(draw)
        state[2].copy_(self.first)
        return state

    def normal(self, like: Tensor, index: int) -> Tensor:
        """Standard normal noise of a tensor's shape."""
        if not isinstance(self.first, Tensor):
            return normal(like.shape, dtype=self.dtype, **self._place(index))
        zero = torch.zeros(like.shape, dtype=self.dtype, device=self.device)
        rng = self.state(index)
        return langevin_step_(zero, zero, None, drift=0.0, pull=0.0, noise_std=1.0, rng=rng)

    def uniform(self, shape: Sequence[int], index: int) -> Tensor:
        """Uniform numbers in (0, 1], float32."""
        return philox.uniform(shape, **self._place(index))

    def randint(self, samples: int, high: int, index: int) -> Tensor:
        """An integer in [0, high) a sample, int64."""
        return philox.randint(samples, high, **self._place(index))

    def _place(self, index: int) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "draw": Purpose.TRAINING.draw(index),
            "first_sample": self.first,
            "device": self.device,
        }
