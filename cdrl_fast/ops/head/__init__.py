"""Head of an energy network on GPUs: energies, and their gradient by the activations."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.head import reference
from cdrl_fast.ops.layout import check_activations, check_dense, sum_dtype

BACKENDS = ("triton", "reference")
"""Backends in order of preference."""


def head(
    a: Tensor,
    rows: Tensor,
    *,
    scale: float = 1.0,
    out: Tensor | None = None,
    gradient: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the energies Σ over pixels and channels of relu(h)·row, where a = leaky(h).

    Also writes their gradient by h, times ``scale``, into ``gradient``.

    Args:
        a: dense (batch, height, width, channels), channels a multiple of 32; float16, bfloat16,
            float32 or float64.
        rows: dense (1 or batch, channels), float32 (float64 for float64).
        scale: factor of the gradient. A power of two keeps half precision in range, and dividing
            by it is exact.
        out: the output for the energies, dense (batch,) in the dtype of rows.
        gradient: the output for scale·row where h > 0, else 0, with shape and dtype of ``a``. None
            to compute no gradient.
        backend: "triton", "reference", or "auto" (the first available one). float64 runs on the
            reference.

    Returns:
        ``out``, or a new tensor. Sums have the dtype of rows. With "triton" a sample has the same
        bits in any batch.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the network of Zhu et al., ICLR 2024.
    """
    check_activations("head", "a", a)
    batch, channels = a.shape[0], a.shape[3]
    dtype = sum_dtype(a.dtype)
    out = torch.empty(batch, dtype=dtype, device=a.device) if out is None else out
    rows_shape = (1 if rows.shape[:1] == (1,) else batch, channels)
    check_dense("head", "rows", rows, rows_shape, dtype, a.device)
    check_dense("head", "out", out, (batch,), dtype, a.device)
    check_dense("head", "gradient", gradient, a.shape, a.dtype, a.device)
    chosen = choose("head", backend, a.device, a.dtype, BACKENDS)
    if chosen == "reference" or not a.numel():
        reference.head(a, rows, scale, out, gradient)
        return out
    from cdrl_fast.ops.head import triton_kernel

    triton_kernel.head(a, rows, scale, out, gradient)
    return out
