"""What the parts of the energy network's plan on GPUs agree on: layouts, LeakyReLU, checks.

The checks serve other operations too.

Activations and their gradients are dense (batch, height, width, channels), with a multiple of 32
channels. What is stored of h is a = leaky(h), from which h is recovered. A 3×3 convolution's weight
is (9, in, out), entry 3·row + column of the first dimension being a tap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SLOPE = 0.2
"""Of LeakyReLU."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, states and energies: float32, or float64 with float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def leaky(h: Tensor) -> Tensor:
    """LeakyReLU."""
    return torch.where(h > 0, h, SLOPE * h)


def recovered(a: Tensor) -> Tensor:
    """What `leaky` gave a for, in the dtype of sums."""
    a = a.to(wide(a.dtype))
    return torch.where(a > 0, a, a / SLOPE)


def filters(weight: Tensor) -> Tensor:
    """(9, in, out) as torch's convolutions take it: (out, in, 3, 3) in the dtype of sums."""
    whole = weight.to(wide(weight.dtype))
    return whole.reshape(3, 3, *weight.shape[1:]).permute(3, 2, 0, 1)


def check_activations(where: str, name: str, tensor: Tensor) -> None:
    """Raises unless these are activations in the layout above."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{where}: {name} must be of a floating dtype, got {tensor.dtype}")
    if tensor.dim() != 4 or tensor.shape[3] % 32 or not tensor.is_contiguous():
        raise ValueError(
            f"{where}: {name} must be dense (batch, height, width, channels) with a multiple of "
            f"32 channels, got {tuple(tensor.shape)} with strides {tensor.stride()}"
        )


def check_dense(
    where: str,
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raises unless the tensor, if there is one, is dense and as said."""
    if tensor is None:
        return
    if tensor.dtype != dtype:
        raise TypeError(f"{where}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.shape != torch.Size(shape) or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{where}: {name} must be dense {tuple(shape)} on {device}, got "
            f"{tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
        )


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the bytes from a's first element to its last share any with b's."""
    return max(a.data_ptr(), b.data_ptr()) < min(_end(a), _end(b))


def same_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one shape are one array."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype


def check_apart(where: str, name: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raises if the tensor, which is written, shares memory with any of the others."""
    for other, read in others.items():
        if read is not None and overlap(tensor, read):
            raise ValueError(
                f"{where}: {name} must not share memory with {other}, which is read while "
                f"{name} is written"
            )


def _end(tensor: Tensor) -> int:
    """Address of the byte after the last element."""
    if tensor.is_contiguous():
        return tensor.data_ptr() + tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps) if tensor.numel() else -1
    return tensor.data_ptr() + (last + 1) * tensor.element_size()
