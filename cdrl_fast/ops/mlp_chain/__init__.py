"""All Langevin steps of an energy made of linear maps and activations, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.ops.coefficients import check_coefficients, kernel_coefficients
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.layout import overlap
from cdrl_fast.ops.mlp_chain import native, reference
from cdrl_fast.ops.mlp_chain.program import IDENTITY, RELU, Activation, Add, Linear, Program
from cdrl_fast.ops.mlp_chain.reference import value
from cdrl_fast.ops.mlp_chain.triton_weights import HALF_DTYPES, packed_weights
from cdrl_fast.ops.philox import check_int64, check_steps, split_rng

if TYPE_CHECKING:
    from cdrl_fast.ops.phase import Phase

__all__ = [
    "IDENTITY",
    "RELU",
    "Activation",
    "Add",
    "Linear",
    "Program",
    "mlp_chain_",
    "value",
    "value_and_gradient",
]

BACKENDS = ("native", "triton", "reference")
"""Backends in order of preference."""


def mlp_chain_(
    program: Program,
    y: Tensor,
    anchor: Tensor | None = None,
    *,
    phase: Phase,
    rows: Tensor | None = None,
    first_bad: Tensor | None = None,
    precision: str = "fp32",
    backend: str = "auto",
) -> Tensor:
    """Run Langevin steps y ← y + drift·∇f(y) - pull·(y - anchor) + noise_std·z, in place.

    Step k = 1 … steps takes z from the noise stream at ``key + k``. The last step's result is
    multiplied by ``rescale``.

    Args:
        program: the energy f; its tensors have y's dtype and device.
        y: state, float32 or float64, (batch, dim); written.
        anchor: x_t of the recovery term, with y's shape and dtype; None for no recovery term.
        phase: the steps, their coefficients and their key.
        rows: (1 or batch, program.rows) in y's dtype; the program's biases that are slices select
            columns of it.
        first_bad: int64 tensor of one element on y's device, initially 2⁶³ - 1. Its value becomes
            the minimum of itself and draw·2³¹ + index of the first sample that became non-finite
            (NaN or Inf), for the first such step.
        precision: "fp32", "bf16" or, in Triton, "fp16": dtype of inputs and weights of the matrix
            products. Products that read the state or compute its gradient, and all sums, are
            float32. The reference computes everything in y's dtype.
        backend: "native" (C++, on CPUs), "triton", "reference", or "auto", the first of these that
            is available. float64 is computed by the reference.

    Returns:
        ``y``. A sample's bits depend neither on the rest of the batch nor on the number of threads.

    Raises:
        ValueError: a shape, device or size does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: ``backend`` names a backend that is not available, or one without
            kernels in this precision.

    Source: Langevin dynamics of a recovery likelihood (Gao et al., ICLR 2021).

    Examples:
        >>> import torch
        >>> from cdrl_fast.ops import Key, Phase, mlp_chain_
        >>> from cdrl_fast.ops.mlp_chain import RELU, Linear, Program
        >>> program = Program((2, 8), (Linear(0, 1, torch.ones(8, 2)),), -torch.ones(8), RELU)
        >>> phase = Phase(10, drift=0.005, pull=0.0, noise_std=0.1, rescale=1.0, key=Key(0, 0))
        >>> y = torch.zeros(100, 2)
        >>> mlp_chain_(program, y, phase=phase) is y
        True
    """
    rng = phase.key.first_step()
    rows = _checked_rows(program, y, rows, precision)
    _check_chain(y, anchor, phase, rng, first_bad)
    chosen = _chosen_backend(backend, y, precision)
    if not y.numel() or not phase.steps:
        return y
    with torch.no_grad():
        # Kernels read the anchor after the first writes to y.
        if anchor is not None and overlap(y, anchor):
            anchor = anchor.clone()
        if chosen == "reference":
            return y.copy_(reference.chain(program, y, anchor, rows, phase, first_bad))
        dense = y if y.is_contiguous() else y.contiguous()
        anchor = None if anchor is None else anchor.contiguous()
        arguments = (anchor, rows, phase.steps, *kernel_coefficients(phase.coefficients, y))
        if chosen == "triton":
            from cdrl_fast.ops.mlp_chain import triton_kernel

            weights = packed_weights(program, precision, False)
            triton_kernel.chain(weights, dense, *arguments, *split_rng(rng), first_bad)
        else:
            position = rng[:3].tolist() if isinstance(rng, Tensor) else split_rng(rng)[0]
            native.chain(program, precision, dense, *arguments, position, first_bad)
        return y if dense is y else y.copy_(dense)


def value_and_gradient(
    program: Program,
    y: Tensor,
    rows: Tensor | None = None,
    *,
    precision: str = "fp32",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return f(y) and ∇f(y), computed without autograd.

    Args:
        program, y, rows, precision, backend: as for `mlp_chain_`; y is not written.

    Returns:
        The value (batch,) and the gradient (batch, dim), in y's dtype.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `mlp_chain_`.
    """
    rows = _checked_rows(program, y, rows, precision)
    chosen = _chosen_backend(backend, y, precision)
    with torch.no_grad():
        if chosen == "reference" or not y.numel():
            return reference.value_and_gradient(program, y, rows)
        if chosen == "triton":
            from cdrl_fast.ops.mlp_chain import triton_kernel

            weights = packed_weights(program, precision, True)
            return triton_kernel.value_and_gradient(weights, y.contiguous(), rows)
        return native.value_and_gradient(program, precision, y.contiguous(), rows)


def _chosen_backend(backend: str, y: Tensor, precision: str) -> str:
    chosen = choose("mlp_chain", backend, y.device, y.dtype, BACKENDS)
    if chosen == "native" and precision not in native.PRECISIONS:
        raise BackendUnavailable(
            f"mlp_chain: precision={precision!r} has a kernel only on CUDA devices; on CPUs use "
            f"one of {native.PRECISIONS}"
        )
    return chosen


def _checked_rows(
    program: Program, y: Tensor, rows: Tensor | None, precision: str
) -> Tensor | None:
    """Check the arguments and return the rows, dense."""
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"mlp_chain: y must be float32 or float64, got {y.dtype}")
    if y.dim() != 2 or y.shape[1] != program.dim:
        raise ValueError(f"mlp_chain: y must be (batch, {program.dim}), got {tuple(y.shape)}")
    if (program.dtype, program.head.device) != (y.dtype, y.device):
        raise TypeError(
            f"mlp_chain: the program must be {y.dtype} on {y.device} like y, got {program.dtype} "
            f"on {program.head.device}"
        )
    if precision not in HALF_DTYPES:
        raise ValueError(
            f"mlp_chain: precision must be one of {tuple(HALF_DTYPES)}, got {precision!r}"
        )
    if program.rows == 0 and rows is None:
        return None
    got = "None" if rows is None else f"{tuple(rows.shape)}"
    if program.rows == 0:
        raise ValueError(f"mlp_chain: this program takes no rows, got {got}")
    if rows is None or rows.shape not in ((1, program.rows), (y.shape[0], program.rows)):
        raise ValueError(
            f"mlp_chain: rows must be (1, {program.rows}) or ({y.shape[0]}, {program.rows}), got "
            f"{got}"
        )
    if (rows.dtype, rows.device) != (y.dtype, y.device):
        raise TypeError(
            f"mlp_chain: rows must be {y.dtype} on {y.device} like y, got {rows.dtype} on "
            f"{rows.device}"
        )
    return rows.contiguous()


def _check_chain(
    y: Tensor,
    anchor: Tensor | None,
    phase: Phase,
    rng: tuple[int, int, int] | Tensor,
    first_bad: Tensor | None,
) -> None:
    if y.requires_grad and torch.is_grad_enabled():
        raise ValueError("mlp_chain: y is written in place and must not require gradients")
    if anchor is not None and (anchor.shape, anchor.device) != (y.shape, y.device):
        raise ValueError(
            f"mlp_chain: anchor must have y's shape {tuple(y.shape)} on {y.device}, got "
            f"{tuple(anchor.shape)} on {anchor.device}"
        )
    if anchor is not None and anchor.dtype != y.dtype:
        raise TypeError(f"mlp_chain: anchor must be {y.dtype} like y, got {anchor.dtype}")
    check_coefficients("mlp_chain", phase.coefficients, y.shape[0], anchor)
    check_steps("mlp_chain", phase.steps, rng, y)
    check_int64("mlp_chain", "first_bad", first_bad, 1, y)
