"""3×3 convolution of channels-last images, or its transpose, with a fused epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.conv3x3 import reference, tiling, tuned
from cdrl_fast.ops.dispatch import choose, reason
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.layout import check_apart, check_dense
from cdrl_fast.ops.sign_bits import WORD

BACKENDS = ("triton", "cudnn", "reference")
"""Backends in order of preference."""

PRECISIONS = ("ieee", "tf32")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    *,
    transposed: bool = False,
    row: Tensor | None = None,
    signs: Tensor | None = None,
    residual: Tensor | None = None,
    residual_activated: bool = False,
    activate: bool = False,
    signs_out: Tensor | None = None,
    out: Tensor | None = None,
    input_precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """Return act(slope(signs)·(conv(x) + row) + residual); stride 1, zero padding.

    Sums and epilogue are float32 until the result is rounded; "cudnn" rounds the sum of the
    convolution once more, before its epilogue. With ``out``, the other backends allocate no
    memory. No backend waits for the device.

    Args:
        x: dense (batch, height, width, channels), float16, bfloat16, float32 or float64.
        weight: dense (9, in, out) in x's dtype; index 3·dy + dx of its first dimension is a tap.
        transposed: conv is the input gradient of the convolution with ``weight``: x has ``out``
            channels and the result ``in``.
        row: (1 or batch, channels), float32 (float64 for float64); added to every pixel.
        signs: int32 (channels / 32, pixels); slope is 1 where bit c % 32 of [c // 32, pixel] is
            set, else 0.2.
        residual: a tensor of the result's shape and dtype; may be the same as ``out``.
        residual_activated: ``residual`` is LeakyReLU(h), and h is added.
        activate: act is LeakyReLU with slope 0.2, else the identity.
        signs_out: the output for the signs of the sum before act, in the layout of ``signs``; a
            bit is set where the sum is > 0.
        out: the output, with the result's shape and dtype; must not share memory with x.
        input_precision: float32 matmul precision, "ieee" or "tf32" (tensor cores).
        backend: "triton", "cudnn", "reference", or "auto": on a GPU the faster one of "triton" and
            "cudnn" if both have been timed, else "triton". float64 runs on the reference.

    Returns:
        (batch, height, width, channels) in x's dtype: ``out``, or a new tensor.

    Raises:
        ValueError: a shape or an option does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the convolutions of Zhu et al., ICLR 2024, as implicit matrix products.
    """
    _check_inputs(x, weight, transposed, input_precision)
    shape = (*x.shape[:3], weight.shape[1 if transposed else 2])
    out = x.new_empty(shape) if out is None else out
    _check_epilogue(x, shape, row, residual, out, signs, signs_out)
    chosen = choose("conv3x3", backend, x.device, x.dtype, BACKENDS)
    if not x.numel():
        return out
    tensors = (out, x, weight, row, residual, signs, signs_out)
    flags = (transposed, residual_activated, activate)
    if chosen == "reference":
        with fp32_precision(input_precision):
            reference.conv3x3(*tensors, *flags)
        return out
    capability = tiling.capability_of(x.device)
    fastest = _fastest(capability, x, shape[3], transposed, input_precision)
    if backend == "auto" and fastest is not None and reason(fastest.backend, x.device) is None:
        chosen = fastest.backend
    if chosen == "cudnn":
        from cdrl_fast.ops.conv3x3 import cudnn

        cudnn.conv3x3(*tensors, *flags, input_precision)
    else:
        from cdrl_fast.ops.conv3x3 import triton_kernel

        blocks = None if fastest is None else fastest.blocks
        triton_kernel.conv3x3(capability, *tensors, *flags, input_precision, blocks)
    return out


def _fastest(
    capability: int, x: Tensor, channels: int, transposed: bool, input_precision: str
) -> tuned.Tuned | None:
    half = x.element_size() == 2
    precision = str(x.dtype).removeprefix("torch.") if half else input_precision
    pixels = x.shape[:3].numel()
    return tuned.find(capability, precision, transposed, x.shape[3], channels, pixels)


def _check_inputs(x: Tensor, weight: Tensor, transposed: bool, input_precision: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"conv3x3: x must be of a floating dtype, got {x.dtype}")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise TypeError(
            f"conv3x3: weight must be {x.dtype} on {x.device}, as x is, got {weight.dtype} on "
            f"{weight.device}"
        )
    if x.dim() != 4 or weight.dim() != 3 or weight.shape[0] != 9:
        raise ValueError(
            "conv3x3: x must be (batch, height, width, channels) and weight (9, in, out), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x.shape[3] != weight.shape[2 if transposed else 1]:
        raise ValueError(
            f"conv3x3: x has {x.shape[3]} channels, which do not fit the weight "
            f"{tuple(weight.shape)}{', transposed' if transposed else ''}"
        )
    if weight.shape[1] % WORD or weight.shape[2] % WORD or not weight.numel():
        raise ValueError(
            f"conv3x3: numbers of channels must be multiples of {WORD}, got weight "
            f"{tuple(weight.shape)}; pad it with zeros"
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("conv3x3: x and weight must be dense; call .contiguous()")
    if input_precision not in PRECISIONS:
        raise ValueError(
            f"conv3x3: input_precision must be one of {PRECISIONS}, got {input_precision!r}"
        )


def _check_epilogue(
    x: Tensor,
    shape: tuple[int, ...],
    row: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    signs: Tensor | None,
    signs_out: Tensor | None,
) -> None:
    signs_shape = (shape[3] // WORD, shape[0] * shape[1] * shape[2])
    row_shape = (1 if row is None or row.shape[:1] == (1,) else shape[0], shape[3])
    expected = [
        ("row", row, row_shape, torch.promote_types(x.dtype, torch.float32)),
        ("residual", residual, shape, x.dtype),
        ("out", out, shape, x.dtype),
        ("signs", signs, signs_shape, torch.int32),
        ("signs_out", signs_out, signs_shape, torch.int32),
    ]
    for name, tensor, size, dtype in expected:
        check_dense("conv3x3", name, tensor, size, dtype, x.device)
    check_apart("conv3x3", "out", out, {"x": x})
