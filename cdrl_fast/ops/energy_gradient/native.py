"""`energy_gradient` in C++ (csrc/cpu/resnet/gradient.cpp): a whole gradient in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.energy_gradient.weights import ResNetWeights


class ResNetGradient:
    """The compiled network for images of one size, with packed weights of its own."""

    def __init__(self, weights: ResNetWeights, height: int, width: int, *, bfloat16: bool) -> None:
        compiled = module()
        channels, image_channels = weights.stem.shape[:2]
        self._kernel = compiled.ResNetGradient(
            image_channels, channels, weights.multipliers, len(weights.stages[0]), height, width,
            bfloat16,
        )  # fmt: skip
        self.load(weights)

    def load(self, weights: ResNetWeights) -> None:
        """Packs the weights, which are checked, float32 on the CPU and of one form."""
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
        """Writes ``energy`` and ``gradient``; all float32 and dense.

        ``signs``, if given, is uint8 (batch, activations): for each block those before its first
        and its second convolution, then those of the head; 1 where positive.
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
        """Memory that a call takes for a batch, besides its arguments and the weights."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
