"""`unet_forward` in C++ (csrc/cpu/unet/forward.cpp): a complete U-Net in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.unet_forward.weights import UNetWeights


class UNet:
    """Compiled network with its own packed copy of the weights."""

    def __init__(self, weights: UNetWeights) -> None:
        width, image_channels = weights.stem.weight.shape[:2]
        self._kernel = module().UNetForward(
            image_channels=image_channels,
            image_size=weights.image_size,
            width=width,
            multipliers=list(weights.multipliers),
            blocks=weights.blocks,
            attention=list(weights.attention),
        )
        self.load(weights)

    def load(self, weights: UNetWeights) -> None:
        """Pack weights of the same form, which have been checked and are float32 on the CPU."""
        self._kernel.load([tensor.data_ptr() for tensor in weights.tensors()])

    def run(self, x: Tensor, rows: Tensor, out: Tensor) -> None:
        """Write ``out``; all are float32 and dense, and ``out`` shares no memory with ``x``."""
        arguments = module().UNetArguments(
            x=x.data_ptr(),
            rows=rows.data_ptr(),
            rows_per_sample=rows.shape[0] != 1,
            out=out.data_ptr(),
            batch=x.shape[0],
        )
        self._kernel.run(arguments, torch.get_num_threads())

    def workspace_bytes(self, batch: int) -> int:
        """Return the bytes that a call needs for a batch besides its arguments and the weights."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
