"""First convolution of an energy network on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.layout import check_activations, check_dense, sum_dtype
from cdrl_fast.ops.sign_bits import sign_bits_shape
from cdrl_fast.ops.stem import reference

BACKENDS = ("triton", "reference")
"""Backends in order of preference."""

MAX_IMAGE_CHANNELS = 4
"""Image channels that the kernels take, at most."""


def stem(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    copies: int = 1,
    out: Tensor | None = None,
    signs: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return leaky(h), where h is a 3×3 convolution of the images with zero padding, plus bias.

    Args:
        y: images, dense (batch, image channels, height, width) with 1 to 4 image channels, float32
            (float64 for float64); rounded to the weight's dtype.
        weight: dense (9, image channels, channels), channels a multiple of 32; index
            3·row + column of the first dimension is a tap; float16, bfloat16, float32 or float64.
        bias: dense (channels,) in y's dtype.
        copies: number of copies of the result along the batch, one after the other, for terms
            (labels) that enter the network only later.
        out: the output, dense (copies·batch, height, width, channels) in the weight's dtype.
        signs: the output for the sign bits h > 0 (see ops/sign_bits.py), which the gradient needs;
            None to leave them out.
        backend: "triton", "reference", or "auto" (the first available one). float64 runs on the
            reference.

    Returns:
        ``out``, or a new tensor. Sums have y's dtype.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the network of Zhu et al., ICLR 2024.
    """
    if y.dim() != 4 or not 1 <= y.shape[1] <= MAX_IMAGE_CHANNELS:
        raise ValueError(
            f"stem: y must be (batch, 1 to 4 image channels, height, width), got {tuple(y.shape)}"
        )
    if not isinstance(copies, int) or copies < 1:
        raise ValueError(f"stem: copies must be an integer of at least 1, got {copies!r}")
    batch, image, height, width = y.shape
    if weight.dim() != 3 or weight.shape[2] % 32:
        raise ValueError(
            f"stem: weight must be (9, {image}, a multiple of 32 channels), got "
            f"{tuple(weight.shape)}"
        )
    channels, dtype = weight.shape[2], weight.dtype
    shape = (copies * batch, height, width, channels)
    out = torch.empty(shape, dtype=dtype, device=y.device) if out is None else out
    check_activations("stem", "out", out)
    check_dense("stem", "y", y, y.shape, sum_dtype(dtype), y.device)
    check_dense("stem", "weight", weight, (9, image, channels), dtype, y.device)
    check_dense("stem", "bias", bias, (channels,), y.dtype, y.device)
    check_dense("stem", "out", out, shape, dtype, y.device)
    check_dense("stem", "signs", signs, sign_bits_shape(out), torch.int32, y.device)
    chosen = choose("stem", backend, y.device, y.dtype, BACKENDS)
    if chosen == "reference" or not y.numel():
        reference.stem(y, weight, bias, copies, out, signs)
        return out
    from cdrl_fast.ops.stem import triton_kernel

    triton_kernel.stem(y, weight, bias, copies, out, signs)
    return out
