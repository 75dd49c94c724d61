"""`conv3x3` by torch's own convolution (cuDNN on a GPU) and one Triton kernel for the epilogue."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.conv3x3.triton_kernel import epilogue
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.triton_common import Launch, launch

TILE = 2048
"""Elements per program, 16 per thread: with 32 the registers of sm_80 spill."""


@triton.jit(do_not_specialize=["batch"])
def cdrl_conv3x3_epilogue(
    out,
    convolved,
    row,
    residual,
    signs,
    signs_out,
    batch,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROW_PER_SAMPLE: tl.constexpr,
    RESIDUAL_ACTIVATED: tl.constexpr,
    ACTIVATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the epilogue of the convolution's sum ``convolved``; PIXELS are those of an image."""
    TILES: tl.constexpr = CHANNELS // BLOCK_N
    block, c0 = tl.program_id(0) // TILES, tl.program_id(0) % TILES * BLOCK_N
    position = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n, pixel = position // PIXELS, position.to(tl.int64)
    offset = pixel[:, None] * CHANNELS + c0 + tl.arange(0, BLOCK_N)[None, :]
    total = tl.load(convolved + offset, mask=(n < batch)[:, None]).to(tl.float32)
    epilogue(
        total, c0, n, pixel, batch, batch.to(tl.int64) * PIXELS, out, row, residual, signs,
        signs_out, CHANNELS, ROW_PER_SAMPLE, RESIDUAL_ACTIVATED, ACTIVATE,
    )  # fmt: skip


def arguments(
    out: Tensor,
    convolved: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    signs: Tensor | None,
    signs_out: Tensor | None,
    residual_activated: bool,
    activate: bool,
) -> Launch:
    """Return the launch of the epilogue; arguments as `conv3x3`, with the convolution's sum."""
    batch, height, width, channels = out.shape
    block_n = min(channels & -channels, 128)
    block_m = TILE // block_n
    values: dict[str, Any] = {
        "out": out,
        "convolved": convolved,
        "row": row,
        "residual": residual,
        "signs": signs,
        "signs_out": signs_out,
        "batch": batch,
        "PIXELS": height * width,
        "CHANNELS": channels,
        "ROW_PER_SAMPLE": row is not None and row.shape[0] > 1,
        "RESIDUAL_ACTIVATED": residual_activated,
        "ACTIVATE": activate,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    programs = -(-batch * height * width // block_m) * (channels // block_n)
    return Launch(cdrl_conv3x3_epilogue, programs, values)


def conv3x3(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    row: Tensor | None,
    residual: Tensor | None,
    signs: Tensor | None,
    signs_out: Tensor | None,
    transposed: bool,
    residual_activated: bool,
    activate: bool,
    input_precision: str,
) -> None:
    """Write ``out`` and ``signs_out``; the tensors are dense and not empty.

    The convolution's sum is rounded to x's dtype; the epilogue computes in float32.
    """
    taps = weight.view(3, 3, *weight.shape[1:]).permute(3, 2, 0, 1)
    # Copied in every call: a captured graph is replayed with other weights in the same memory.
    filters = taps.contiguous(memory_format=torch.channels_last)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with fp32_precision(input_precision, deterministic=True):
        y = convolve(x.permute(0, 3, 1, 2), filters, padding=1).permute(0, 2, 3, 1)
    inputs = (row, residual, signs, signs_out, residual_activated, activate)
    launch(arguments(out, y.contiguous(), *inputs), out.device)
