"""`energy_gradient` in C++ (csrc/cpu/resnet/): one call computes a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import address, module
from cdrl_fast.ops.energy_gradient.weights import ResNetWeights


class ResNetGradient:
    """A compiled network for images of one size, with its own packed weights."""

    def __init__(self, weights: ResNetWeights, height: int, width: int, *, bfloat16: bool) -> None:
        channels, image_channels = weights.stem.shape[:2]
        self._kernel = module().ResNetGradient(
            image_channels=image_channels,
            width=channels,
            multipliers=weights.multipliers,
            blocks=len(weights.stages[0]),
            height=height,
            width_pixels=width,
            bfloat16=bfloat16,
        )
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
        arguments = module().ResNetArguments(
            y=y.data_ptr(),
            rows=rows.data_ptr(),
            rows_per_sample=rows.shape[0] != 1,
            head=head.data_ptr(),
            head_per_sample=head.shape[0] != 1,
            energies=energy.data_ptr(),
            gradient=address(gradient),
            signs=address(signs),
            batch=y.shape[0],
        )
        self._kernel.run(arguments, torch.get_num_threads())

    def workspace_bytes(self, batch: int) -> int:
        """Return the size in bytes of a call's workspace for a batch."""
        return int(self._kernel.workspace_bytes(batch, torch.get_num_threads()))
