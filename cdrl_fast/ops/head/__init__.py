"""The head of an energy network on GPUs: energies, and the gradient that goes back from them."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import TRITON_BACKENDS, choose
from cdrl_fast.ops.head import reference
from cdrl_fast.ops.layout import check_activations, check_dense, sum_dtype


def head(
    a: Tensor,
    rows: Tensor,
    *,
    scale: float = 1.0,
    out: Tensor | None = None,
    gradient: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Energies Σ over pixels and channels of relu(h)·row, and their gradient by h; a = leaky(h).

    Args:
        a: dense (batch, height, width, channels), channels a multiple of 32; float16, bfloat16,
            float32 or float64.
        rows: dense (1 or batch, channels), float32 (float64 with float64).
        scale: of the gradient. A power of two keeps half precision in range and is exact to undo.
        out: where to write the energies; dense (batch,) in the dtype of rows.
        gradient: where to write scale·row where h > 0, else 0; like ``a``. None where none is
            wanted.
        backend: "triton", "reference", or "auto": the first that can. float64 is the reference's.

    Returns:
        ``out``, or a new tensor. Sums are of the dtype of rows, and Triton's do not depend on the
        batch.

    Raises:
        ValueError: shapes that do not fit. TypeError: dtypes that do not.
        BackendUnavailable: an explicit backend that cannot be had.

    Source: the network of Zhu et al., ICLR 2024.
    """
    check_activations("head", "a", a)
    batch, channels = a.shape[0], a.shape[3]
    dtype = sum_dtype(a.dtype)
    out = torch.empty(batch, dtype=dtype, device=a.device) if out is None else out
    rows_of = (1 if rows.shape[:1] == (1,) else batch, channels)
    check_dense("head", "rows", rows, rows_of, dtype, a.device)
    check_dense("head", "out", out, (batch,), dtype, a.device)
    check_dense("head", "gradient", gradient, a.shape, a.dtype, a.device)
    chosen = choose("head", backend, a.device, a.dtype, TRITON_BACKENDS)
    if chosen == "reference" or not a.numel():
        reference.head(a, rows, scale, out, gradient)
        return out
    from cdrl_fast.ops.head import triton_kernel

    triton_kernel.head(a, rows, scale, out, gradient)
    return out
