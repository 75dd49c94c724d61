"""Mean pooling between the stages of an energy network on GPUs, and its transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.layout import check_activations, check_dense
from cdrl_fast.ops.pool import reference
from cdrl_fast.ops.sign_bits import sign_bits_shape

BACKENDS = ("triton", "reference")
"""Backends in order of preference."""


def pool(
    a: Tensor,
    *,
    out: Tensor | None = None,
    signs: Tensor | None = None,
    mean: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return leaky(m), where m are the means of h over 2×2 pixels and a = leaky(h).

    Args:
        a: dense (batch, height, width, channels), height and width even, channels a multiple of
            32; float16, bfloat16, float32 or float64.
        out: the output, dense (batch, height / 2, width / 2, channels) in a's dtype.
        signs: the output for the sign bits m > 0 (see ops/sign_bits.py), which the gradient needs;
            None to leave them out.
        mean: the output for m, with shape and dtype of ``out``; None to leave it out.
        backend: "triton", "reference", or "auto" (the first available one). float64 runs on the
            reference.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the network of Zhu et al., ICLR 2024.
    """
    check_activations("pool", "a", a)
    batch, height, width, channels = a.shape
    if height % 2 or width % 2:
        raise ValueError(f"pool: height and width must be even, got {height} and {width}")
    shape = (batch, height // 2, width // 2, channels)
    out = torch.empty(shape, dtype=a.dtype, device=a.device) if out is None else out
    check_dense("pool", "out", out, shape, a.dtype, a.device)
    check_dense("pool", "signs", signs, sign_bits_shape(out), torch.int32, a.device)
    check_dense("pool", "mean", mean, shape, a.dtype, a.device)
    chosen = choose("pool", backend, a.device, a.dtype, BACKENDS)
    if chosen == "reference" or not a.numel():
        reference.pool(a, out, signs, mean)
        return out
    from cdrl_fast.ops.pool import triton_kernel

    triton_kernel.pool(a, out, signs, mean)
    return out


def spread(g: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return the transpose of `pool`'s means applied to g: g / 4 at each of four pixels.

    Args:
        g: dense (batch, height, width, channels); channels and dtype as in `pool`.
        out: the output, dense (batch, 2·height, 2·width, channels) in g's dtype.
        backend: as in `pool`.

    Returns:
        ``out``, or a new tensor.

    Raises:
        ValueError, TypeError, BackendUnavailable: as in `pool`.
    """
    check_activations("spread", "g", g)
    batch, height, width, channels = g.shape
    shape = (batch, 2 * height, 2 * width, channels)
    out = torch.empty(shape, dtype=g.dtype, device=g.device) if out is None else out
    check_dense("spread", "out", out, shape, g.dtype, g.device)
    chosen = choose("spread", backend, g.device, g.dtype, BACKENDS)
    if chosen == "reference" or not g.numel():
        reference.spread(g, out)
        return out
    from cdrl_fast.ops.pool import triton_kernel

    triton_kernel.spread(g, out)
    return out
