"""3×3 convolution for training: the result, and gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.train_conv3x3 import native, reference

BACKENDS = ("native", "reference")
"""Backends in order of preference."""


def train_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    again: native.InputFactory | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the convolution weight * x + bias with zero padding, differentiable in all three.

    Args:
        x: (batch, in, height, width), in any memory format.
        weight: (out, in, 3, 3).
        bias: (out,).
        again: a function that computes x a second time; "native" then does not store x for the
            gradients. None to store it.
        backend: "native" (C++, on CPUs), "reference" (torch's own convolution), or "auto" (the
            first available one). "native" computes float32 outside autocast, and its gradients
            cannot be differentiated again.

    Returns:
        (batch, out, height, width), channels-last with "native".

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: Lavin & Gray, CVPR 2016, F(4×4, 3×3) and F(2×2, 3×3), forward and in both gradients.
    """
    _check(x, weight, bias)
    chosen = choose("train_conv3x3", backend, x.device, x.dtype, BACKENDS)
    if chosen == "native":
        why = _why_not_native(x)
        if why is None:
            return native.TrainConv3x3.run(x, weight, bias, again)
        if backend == "native":
            raise BackendUnavailable(f"train_conv3x3: {why}")
    return reference.train_conv3x3(x, weight, bias)


def _why_not_native(x: Tensor) -> str | None:
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return 'backend="native" computes in float32 without autocast; use "auto"'
    return None if x.numel() else f'backend="native" needs at least one pixel, got {tuple(x.shape)}'


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if not x.dtype == weight.dtype == bias.dtype or not x.is_floating_point():
        raise TypeError(
            f"train_conv3x3: x, weight and bias must have one floating dtype, got {x.dtype}, "
            f"{weight.dtype} and {bias.dtype}"
        )
    fits = x.dim() == 4 and weight.shape[1:] == (x.shape[1], 3, 3)
    if not fits or bias.shape != weight.shape[:1]:
        raise ValueError(
            "train_conv3x3: expected x (batch, in, height, width), weight (out, in, 3, 3) and bias "
            f"(out,), got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
