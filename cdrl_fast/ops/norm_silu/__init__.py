"""Group norm with scale, shift and SiLU for the activations of a U-Net on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.layout import DTYPES, check_apart, check_dense, same_elements, sum_dtype
from cdrl_fast.ops.norm_silu import reference

BACKENDS = ("triton", "reference")
"""Backends in order of preference."""


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    offset: Tensor | None = None,
    row: Tensor | None = None,
    activate: bool = True,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return silu(norm(x + offset)·(1 + scale) + shift).

    norm is a group norm with gcd(32, channels) groups and ε = 1e-6, times ``weight`` plus ``bias``.

    Args:
        x: dense (batch, height, width, channels); float16, bfloat16, float32 or float64.
        weight, bias: dense (channels,), float32 (float64 for float64).
        offset: bias of the convolution before, as ``bias``; adding it here saves a pass over x.
            None means 0.
        row: (1 or batch, 2·channels), scale then shift, in the dtype of ``bias``; only each row
            must be dense, so that it can be a part of longer rows. None means 0.
        activate: whether SiLU is applied.
        out: the output, with shape and dtype of ``x``; x itself, or a tensor that shares no memory
            with any argument.
        backend: "triton", "reference", or "auto" (the first available one). float64 runs on the
            reference.

    Returns:
        ``out``, or a new tensor. Sums are float32 (float64 for float64). With "triton" a sample has
        the same bits in any batch.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the initializer of Zhu et al., ICLR 2024; Wu & He, ECCV 2018.
    """
    out = torch.empty_like(x) if out is None else out
    _check(x, weight, bias, offset, row, out)
    chosen = choose("norm_silu", backend, x.device, x.dtype, BACKENDS)
    if chosen == "reference" or not x.numel():
        reference.norm_silu(x, weight, bias, offset, row, activate, out)
        return out
    from cdrl_fast.ops.norm_silu import triton_kernel

    triton_kernel.norm_silu(x, weight, bias, offset, row, activate, out)
    return out


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, row: Tensor | None, out: Tensor
) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"norm_silu: x must be of a floating dtype, got {x.dtype}")
    if x.dim() != 4 or not x.is_contiguous():
        raise ValueError(
            "norm_silu: x must be dense (batch, height, width, channels), got "
            f"{tuple(x.shape)} with strides {x.stride()}"
        )
    batch, channels, dtype = x.shape[0], x.shape[3], sum_dtype(x.dtype)
    for name, tensor in (("weight", weight), ("bias", bias), ("offset", offset)):
        check_dense("norm_silu", name, tensor, (channels,), dtype, x.device)
    check_dense("norm_silu", "out", out, x.shape, x.dtype, x.device)
    inputs = {"weight": weight, "bias": bias, "offset": offset, "row": row}
    check_apart("norm_silu", "out", out, inputs if same_elements(out, x) else {"x": x, **inputs})
    if row is None:
        return
    if row.dtype != dtype:
        raise TypeError(f"norm_silu: row must be {dtype}, got {row.dtype}")
    fits = row.shape in ((1, 2 * channels), (batch, 2 * channels)) and row.stride(1) == 1
    if not fits or row.device != x.device:
        raise ValueError(
            f"norm_silu: row must be (1 or {batch}, {2 * channels}) on {x.device}, with each row "
            f"dense, got {tuple(row.shape)} with strides {row.stride()} on {row.device}"
        )
