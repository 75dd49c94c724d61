"""Value and input gradient of a residual energy network, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.energy_gradient import native, reference
from cdrl_fast.ops.energy_gradient.weights import Block, ResNetWeights
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.layout import check_apart, check_dense

__all__ = ["Block", "EnergyGradient", "ResNetWeights"]

BACKENDS = ("native", "reference")
"""Backends in order of preference."""


class EnergyGradient:
    """The energy f(y; rows, head) of a folded network and its gradient with respect to y.

    f is the network of `ResNetWeights`. Only the signs of activations are stored between forward
    and backward pass, since LeakyReLU's gradient needs no more.

    Args:
        weights: float32 or float64, dense, on the device that computes.
        height, width: image size; multiples of ``weights.multiple``.
        bfloat16: round weights and the inputs of convolutions to bfloat16. State, residual stream
            and sums stay float32.
        backend: "native" (C++, on CPUs), "reference", or "auto", the first of these that is
            available. float64 is computed by the reference, bfloat16 by the native backend.

    Raises:
        ValueError: weights or sizes do not fit.
        TypeError: the dtypes of the weights differ.
        BackendUnavailable: ``backend`` names a backend that is not available, or bfloat16 has no
            kernel here.

    Source: the network of Zhu et al., ICLR 2024.
    """

    def __init__(
        self,
        weights: ResNetWeights,
        height: int,
        width: int,
        *,
        bfloat16: bool = False,
        backend: str = "auto",
    ) -> None:
        weights.check("EnergyGradient")
        weights.check_size("EnergyGradient", height, width)
        stem = weights.stem
        self.backend = choose("EnergyGradient", backend, stem.device, stem.dtype, BACKENDS)
        if bfloat16 and self.backend != "native":
            raise BackendUnavailable(
                "EnergyGradient: bfloat16 needs the native backend with float32 weights on a CPU, "
                f"got the {self.backend} backend with {stem.dtype} weights on {stem.device}"
            )
        self.weights, self.shape = weights, (stem.shape[1], height, width)
        self._kernel = (
            native.ResNetGradient(weights, height, width, bfloat16=bfloat16)
            if self.backend == "native"
            else None
        )

    def load(self, weights: ResNetWeights) -> None:
        """Replace the weights by others of the same form."""
        weights.check("EnergyGradient", self.weights.form)
        self.weights = weights
        if self._kernel is not None:
            self._kernel.load(weights)

    def value(self, y: Tensor, rows: Tensor, head: Tensor) -> Tensor:
        """Return f(y): (batch,). Arguments as in `value_and_gradient`."""
        self._check(y, rows, head)
        if self._kernel is None:
            with fp32_precision("ieee"):
                return reference.value(self.weights, y, rows, head, reference.Signs())[0]
        energy = y.new_empty(y.shape[0])
        self._kernel.run(y.contiguous(), rows, head, energy, None)
        return energy

    def value_and_gradient(
        self, y: Tensor, rows: Tensor, head: Tensor, *, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return f(y) and ∇f(y).

        Args:
            y: (batch, channels, height, width), with the weights' dtype and device.
            rows: (1 or batch, R), dense: the bias rows of the blocks' first convolutions, one after
                another.
            head: (1 or batch, channels of the last block), dense.
            out: tensor for the gradient, dense, with y's shape and dtype. It may be ``y``, and
                otherwise shares no memory with the arguments. None allocates one.

        Returns:
            f(y) (batch,) and ∇f(y) with the shape of y.

        Raises:
            ValueError: a shape or a memory layout does not fit.
            TypeError: a dtype, or the device of y, does not fit.
        """
        self._check(y, rows, head)
        if out is not None:
            check_dense("EnergyGradient", "out", out, y.shape, y.dtype, y.device)
            inputs = {"rows": rows, "head": head}
            check_apart("EnergyGradient", "out", out, inputs if out is y else {"y": y, **inputs})
        if self._kernel is None:
            with fp32_precision("ieee"):
                energy, gradient = reference.value_and_gradient(self.weights, y, rows, head)
            return energy, gradient if out is None else out.copy_(gradient)
        energy = y.new_empty(y.shape[0])
        gradient = torch.empty(y.shape, dtype=y.dtype, device=y.device) if out is None else out
        self._kernel.run(y.contiguous(), rows, head, energy, gradient)
        return energy, gradient

    def working_memory(self, batch: int) -> int | None:
        """Return the native backend's workspace for a batch in bytes; None for the reference."""
        return None if self._kernel is None else self._kernel.workspace_bytes(batch)

    def _check(self, y: Tensor, rows: Tensor, head: Tensor) -> None:
        stem = self.weights.stem
        if y.shape[1:] != self.shape:
            raise ValueError(
                f"EnergyGradient: y must have shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(y.shape)}"
            )
        if y.dtype != stem.dtype or y.device != stem.device:
            raise TypeError(
                f"EnergyGradient: y must be {stem.dtype} on {stem.device} like the weights, got "
                f"{y.dtype} on {y.device}"
            )
        last = len(self.weights.blocks[-1].bias)
        sizes = {"rows": sum(self.weights.row_sizes), "head": last}
        for name, tensor in (("rows", rows), ("head", head)):
            if tensor.shape not in ((1, sizes[name]), (y.shape[0], sizes[name])):
                raise ValueError(
                    f"EnergyGradient: {name} must have shape (1 or {y.shape[0]}, {sizes[name]}), "
                    f"got {tuple(tensor.shape)}"
                )
            check_dense("EnergyGradient", name, tensor, tensor.shape, stem.dtype, stem.device)
