"""`unet_forward` in C++ (csrc/cpu/unet/forward.cpp): a whole U-Net in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.unet_forward.weights import UNetWeights


class UNet:
    """The compiled network, with packed weights of its own."""

    def __init__(self, weights: UNetWeights) -> None:
        compiled = module()
        width, image_channels = weights.stem.weight.shape[:2]
        self._kernel = compiled.UNetForward(
            image_channels,
            weights.image_size,
            width,
            list(weights.multipliers),
            weights.blocks,
            list(weights.attention),
        )
        self.load(weights)

    def load(self, weights: UNetWeights) -> None:
        """Packs the weights, which are checked, float32 on the CPU and of one form."""
        self._kernel.load([tensor.data_ptr() for tensor in weights.tensors()])

    def run(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """Writes ``out``; all float32 and dense, ``out`` apart from ``x``."""
        self._kernel.run(
            x.data_ptr(),
            rows.data_ptr(),
            rows.shape[0] != 1,
            out.data_ptr(),
            x.shape[0],
            torch.get_num_threads(),
        )

    def workspace_bytes(self, batch: int) -> int:
        """Memory that a call takes for a batch, besides its arguments and the weights."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
