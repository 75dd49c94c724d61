"""`unet_forward` in C++ (csrc/cpu/unet/forward.cpp): a complete U-Net in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.unet_forward.weights import UNetWeights


class UNet:
    """Compiled network with its own packed copy of the weights."""

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
        """Pack weights of the same form, which have been checked and are float32 on the CPU."""
        self._kernel.load([tensor.data_ptr() for tensor in weights.tensors()])

    def run(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """Write ``out``; all are float32 and dense, and ``out`` shares no memory with ``x``."""
        self._kernel.run(
            x.data_ptr(),
            rows.data_ptr(),
            rows.shape[0] != 1,
            out.data_ptr(),
            x.shape[0],
            torch.get_num_threads(),
        )

    def workspace_bytes(self, batch: int) -> int:
        """Return the bytes that a call needs for a batch besides its arguments and the weights."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
