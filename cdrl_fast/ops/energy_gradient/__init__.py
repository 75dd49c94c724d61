"""A residual energy network's value and input gradient, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.ops.dispatch import CPU_BACKENDS, choose
from cdrl_fast.ops.energy_gradient import native, reference
from cdrl_fast.ops.energy_gradient.weights import Block, ResNetWeights
from cdrl_fast.ops.layout import check_apart, check_dense

__all__ = ["Block", "EnergyGradient", "ResNetWeights"]


class EnergyGradient:
    """f(y; rows, head) of a folded network and its gradient with respect to y.

    f is the network of `ResNetWeights`. One bit an activation is kept between the two passes: the
    sign that LeakyReLU needs.

    Args:
        weights: float32 or float64, dense, on the device where it computes.
        height, width: of the images; multiples of ``weights.multiple``.
        bfloat16: round weights and the inputs of convolutions to bfloat16. State, residual stream
            and sums stay float32.
        backend: "native" (C++, on CPUs), "reference", or "auto": the first that can. float64 is the
            reference's, bfloat16 the native room's.

    Raises:
        ValueError: weights or sizes that do not fit.
        BackendUnavailable: the backend is not available.

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
        self.backend = choose("EnergyGradient", backend, stem.device, stem.dtype, CPU_BACKENDS)
        if bfloat16 and self.backend != "native":
            raise BackendUnavailable(
                "EnergyGradient: bfloat16 needs the native backend, float32 weights on a CPU"
            )
        self.weights, self.shape = weights, (stem.shape[1], height, width)
        self._kernel = (
            native.ResNetGradient(weights, height, width, bfloat16=bfloat16)
            if self.backend == "native"
            else None
        )

    def load(self, weights: ResNetWeights) -> None:
        """Takes other weights of the same form."""
        weights.check("EnergyGradient", self.weights.form)
        self.weights = weights
        if self._kernel is not None:
            self._kernel.load(weights)

    def value(self, y: Tensor, rows: Tensor, head: Tensor) -> Tensor:
        """f(y): (batch,). Arguments as in `value_and_gradient`."""
        self._check(y, rows, head)
        if self._kernel is None:
            return reference.value(self.weights, y, rows, head, reference.Signs())[0]
        energy = y.new_empty(y.shape[0])
        self._kernel.run(y.contiguous(), rows, head, energy, None)
        return energy

    def value_and_gradient(
        self, y: Tensor, rows: Tensor, head: Tensor, *, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """f(y) and ∇f(y).

        Args:
            y: (batch, channels, height, width), of the weights' dtype and device.
            rows: (1 or batch, R), dense: for each block the bias row of its first convolution.
            head: (1 or batch, channels of the last block), dense.
            out: where to write the gradient; dense, like y, which it may be, else apart from all
                arguments.

        Returns:
            (batch,) and the shape of y.

        Raises:
            ValueError: shapes that do not fit. TypeError: dtypes that do not.
        """
        self._check(y, rows, head)
        if out is not None:
            check_dense("EnergyGradient", "out", out, y.shape, y.dtype, y.device)
            read = {"rows": rows, "head": head}
            check_apart("EnergyGradient", "out", out, read if out is y else {"y": y, **read})
        if self._kernel is None:
            energy, gradient = reference.value_and_gradient(self.weights, y, rows, head)
            return energy, gradient if out is None else out.copy_(gradient)
        energy = y.new_empty(y.shape[0])
        gradient = torch.empty(y.shape, dtype=y.dtype, device=y.device) if out is None else out
        self._kernel.run(y.contiguous(), rows, head, energy, gradient)
        return energy, gradient

    def working_memory(self, batch: int) -> int | None:
        """Bytes that the native room takes for a batch, besides arguments and weights."""
        return None if self._kernel is None else self._kernel.workspace_bytes(batch)

    def _check(self, y: Tensor, rows: Tensor, head: Tensor) -> None:
        like = self.weights.stem
        if y.shape[1:] != self.shape:
            raise ValueError(
                f"EnergyGradient: y must have shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(y.shape)}"
            )
        if y.dtype != like.dtype or y.device != like.device:
            raise TypeError(
                f"EnergyGradient: y must be {like.dtype} on {like.device} like the weights, got "
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
            check_dense("EnergyGradient", name, tensor, tensor.shape, like.dtype, like.device)
