"""Group norm, scale, shift and SiLU for training: the result, and gradients by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.train_norm_silu import native, reference

BACKENDS = ("native", "reference")
"""Backends in order of preference."""


def train_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    row: Tensor | None = None,
    activate: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Return silu(norm(x)·(1 + scale) + shift), differentiable in all tensors.

    norm is a group norm with ε = 1e-6.

    Args:
        x: (batch, channels, height, width), in any memory format.
        weight, bias: (channels,), parameters of the norm.
        groups: number of groups, a divisor of the channels.
        row: (batch, 2·channels), scale then shift. None means 0.
        activate: whether SiLU is applied.
        backend: "native" (C++, on CPUs), "reference" (torch's own operations), or "auto" (the
            first available one). "native" computes float32 outside autocast and needs a multiple
            of 16 channels; its gradients cannot be differentiated again.

    Returns:
        A tensor of x's shape, channels-last with "native".

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the initializer of Zhu et al., ICLR 2024; Wu & He, ECCV 2018.
    """
    _check(x, weight, bias, groups, row)
    chosen = choose("train_norm_silu", backend, x.device, x.dtype, BACKENDS)
    if chosen == "native":
        why = _why_not_native(x)
        if why is None:
            return native.TrainNormSilu.run(x, weight, bias, row, groups, activate)
        if backend == "native":
            raise BackendUnavailable(f"train_norm_silu: {why}")
    return reference.train_norm_silu(x, weight, bias, groups, row, activate)


def _why_not_native(x: Tensor) -> str | None:
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return 'backend="native" computes in float32 without autocast; use "auto"'
    if x.shape[1] % native.BLOCK or not x.numel():
        return (
            f'backend="native" needs channels that are a multiple of {native.BLOCK}, and at least '
            f"one pixel, got {tuple(x.shape)}"
        )
    return None


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, row: Tensor | None) -> None:
    parameters = {"weight": weight, "bias": bias} | ({} if row is None else {"row": row})
    if not x.is_floating_point() or any(t.dtype != x.dtype for t in parameters.values()):
        dtypes = ", ".join(f"{name} {t.dtype}" for name, t in {"x": x, **parameters}.items())
        raise TypeError(f"train_norm_silu: expected one floating dtype, got {dtypes}")
    channels = x.shape[1] if x.dim() == 4 else 0
    if not channels or groups < 1 or channels % groups:
        raise ValueError(
            "train_norm_silu: expected x (batch, channels, height, width) and groups that divide "
            f"its channels, got {tuple(x.shape)} and {groups}"
        )
    shapes = {"weight": (channels,), "bias": (channels,), "row": (x.shape[0], 2 * channels)}
    for name, tensor in parameters.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"train_norm_silu: {name} must be {shapes[name]}, got {tuple(tensor.shape)}"
            )
