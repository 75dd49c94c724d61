"""Layouts, LeakyReLU and argument checks that several operations share.

Activations and their gradients are dense (batch, height, width, channels), with a multiple of 32
channels. Activations h are stored as a = leaky(h), and `inverse_leaky` returns h from a. A 3×3
convolution's weight is (9, in, out); index 3·row + column of its first dimension is a tap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SLOPE = 0.2
"""Slope of LeakyReLU below zero."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums, states and energies: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def leaky(h: Tensor) -> Tensor:
    """Return LeakyReLU(h)."""
    return torch.where(h > 0, h, SLOPE * h)


def inverse_leaky(a: Tensor) -> Tensor:
    """Return h with `leaky`(h) = a, in `sum_dtype`."""
    a = a.to(sum_dtype(a.dtype))
    return torch.where(a > 0, a, a / SLOPE)


def filters(weight: Tensor) -> Tensor:
    """Return a weight (9, in, out) as (out, in, 3, 3) for torch's convolutions, in `sum_dtype`."""
    taps = weight.to(sum_dtype(weight.dtype)).reshape(3, 3, *weight.shape[1:])
    return taps.permute(3, 2, 0, 1)


def check_activations(operation: str, name: str, tensor: Tensor) -> None:
    """Raise TypeError or ValueError unless ``tensor`` has this module's layout of activations."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{operation}: {name} must be of a floating dtype, got {tensor.dtype}")
    if tensor.dim() != 4 or tensor.shape[3] % 32 or not tensor.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must be dense (batch, height, width, channels) with a multiple "
            f"of 32 channels, got {tuple(tensor.shape)} with strides {tensor.stride()}"
        )


def check_dense(
    operation: str,
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise unless ``tensor`` is None, or dense with this shape, dtype and device."""
    if tensor is None:
        return
    if tensor.dtype != dtype:
        raise TypeError(f"{operation}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.shape != torch.Size(shape) or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must be dense {tuple(shape)} on {device}, got "
            f"{tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
        )


def overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether the memory from a's first to its last element overlaps that of b."""
    return max(a.data_ptr(), b.data_ptr()) < min(_end(a), _end(b))


def same_elements(a: Tensor, b: Tensor) -> bool:
    """Return whether two dense tensors of equal shape share address and dtype."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype


def check_apart(
    operation: str, name: str, output: Tensor, inputs: Mapping[str, Tensor | None]
) -> None:
    """Raise ValueError if ``output`` shares memory with an input; both are named."""
    for input_name, tensor in inputs.items():
        if tensor is not None and overlap(output, tensor):
            raise ValueError(
                f"{operation}: {name} must not share memory with {input_name}, which is read while "
                f"{name} is written"
            )


def _end(tensor: Tensor) -> int:
    """Return the address of the byte after the last element."""
    if tensor.is_contiguous():
        return tensor.data_ptr() + tensor.nbytes
    dimensions = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in dimensions) if tensor.numel() else -1
    return tensor.data_ptr() + (last + 1) * tensor.element_size()
