"""`energy_gradient` in C++ (csrc/cpu/resnet/): one call computes a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.energy_gradient.weights import ResNetWeights


class ResNetGradient:
    """A compiled network for images of one size, with its own packed weights."""

    def __init__(self, weights: ResNetWeights, height: int, width: int, *, bfloat16: bool) -> None:
        compiled = module()
        channels, image_channels = weights.stem.shape[:2]
        self._kernel = compiled.ResNetGradient(
            image_channels, channels, weights.multipliers, len(weights.stages[0]), height, width,
            bfloat16,
        )  # fmt: skip
        self.load(weights)

    def load(self, weights: ResNetWeights) -> None:
        """Pack weights that are checked, float32, on the CPU and of the same form."""
        self._kernel.load([tensor.data_ptr() for tensor in weights.tensors()])

    def run(
        self,
        y: Tensor,
        rows: Tensor,
        head: Tensor,
        energy: Tensor,
        gradient: Tensor | None,
        signs: Tensor | None = None,
    ) -> None:
        """Write ``energy`` and ``gradient``; all float32 and dense.

        ``signs``, if not None, is written, too: uint8 (batch, activations), 1 where an activation
        is positive, in the order of `reference.Signs`.
        """
        batch = y.shape[0]
        self._kernel.run(
            y.data_ptr(),
            rows.data_ptr(),
            rows.shape[0] != 1,
            head.data_ptr(),
            head.shape[0] != 1,
            energy.data_ptr(),
            0 if gradient is None else gradient.data_ptr(),
            0 if signs is None else signs.data_ptr(),
            batch,
            torch.get_num_threads(),
        )

    def workspace_bytes(self, batch: int) -> int:
        """Return the size in bytes of a call's workspace for a batch."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
