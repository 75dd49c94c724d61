"""`conv3x3` by torch's own convolution, cuDNN's on a GPU, and one kernel for what follows it."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.conv3x3.triton_kernel import finish
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.triton_common import Launch, launch

TILE = 2048
"""Values of a program, 16 a thread: with 32, sm_80 spilled."""


@triton.jit(do_not_specialize=["batch"])
def cdrl_conv3x3_epilogue(
    out,
    convolved,
    row,
    residual,
    signs,
    signs_out,
    batch,
    IMAGE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL_ACTIVATED: tl.constexpr,
    ACTIVATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """IMAGE is an image's number of pixels."""
    TILES: tl.constexpr = CHANNELS // BLOCK_N
    block, c0 = tl.program_id(0) // TILES, tl.program_id(0) % TILES * BLOCK_N
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n, pixel = place // IMAGE, place.to(tl.int64)
    at = pixel[:, None] * CHANNELS + c0 + tl.arange(0, BLOCK_N)[None, :]
    total = tl.load(convolved + at, mask=(n < batch)[:, None]).to(tl.float32)
    finish(
        total, c0, n, pixel, batch, batch.to(tl.int64) * IMAGE, out, row, residual, signs,
        signs_out, CHANNELS, ROWS, RESIDUAL_ACTIVATED, ACTIVATE,
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
        "IMAGE": height * width,
        "CHANNELS": channels,
        "ROWS": row is not None and row.shape[0] > 1,
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
    """Writes ``out`` and ``signs_out``; dense and not empty.

    The convolution's sum is rounded to x's dtype before the rest is added to it in float32.
    """
    taps = weight.view(3, 3, *weight.shape[1:]).permute(3, 2, 0, 1)
    # A copy at each call: a captured graph is replayed with other weights in the same memory.
    filters = taps.contiguous(memory_format=torch.channels_last)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with fp32_precision(input_precision, deterministic=True):
        y = convolve(x.permute(0, 3, 1, 2), filters, padding=1).permute(0, 2, 3, 1)
    rest = (row, residual, signs, signs_out, residual_activated, activate)
    launch(arguments(out, y.contiguous(), *rest), out.device)
