"""`conv3x3` in Triton: an implicit matrix product with a fused epilogue.

A program computes a block of pixels × a block of output channels. Its sum runs over blocks of input
channels and, within each, over the nine taps, which read the same pixels shifted, mostly from L2.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cdrl_fast.ops.conv3x3.tiling import Blocks, Tiling, tiling
from cdrl_fast.ops.triton_common import (
    OPTIONS,
    Launch,
    inverse_leaky,
    launch,
    leaky,
    pack_signs,
    unpack_signs,
)

_ALIGNMENT = 16
"""Bytes; TMA needs arrays that begin at multiples of it."""


@triton.jit
def pixels(
    block,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BOXES: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
):
    """Return sample, row and column of each pixel of a block, and of the block's first pixel.

    With BOXES a block is BOX_N samples × BOX_H rows × BOX_W columns, else the same number of
    consecutive pixels, which may belong to several samples.
    """
    lane = tl.arange(0, BOX_N * BOX_H * BOX_W)
    if BOXES:
        ACROSS: tl.constexpr = WIDTH // BOX_W
        DOWN: tl.constexpr = HEIGHT // BOX_H
        n0 = block // (ACROSS * DOWN) * BOX_N
        h0 = block // ACROSS % DOWN * BOX_H
        w0 = block % ACROSS * BOX_W
        n = n0 + lane // (BOX_H * BOX_W)
        h = h0 + lane // BOX_W % BOX_H
        w = w0 + lane % BOX_W
    else:
        n0, h0, w0 = 0, 0, 0
        pixel = block * (BOX_N * BOX_H * BOX_W) + lane
        n = pixel // (HEIGHT * WIDTH)
        h = pixel // WIDTH % HEIGHT
        w = pixel % WIDTH
    return n, h, w, n0, h0, w0


@triton.jit
def epilogue(
    total,
    c0,
    n,
    pixel,
    batch,
    count,
    out,
    row,
    residual,
    signs,
    signs_out,
    C_OUT: tl.constexpr,
    ROW_PER_SAMPLE: tl.constexpr,
    RESIDUAL_ACTIVATED: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """Write the epilogue of a block's sum ``total``.

    Args:
        total: float32 (pixels, channels), the convolution's sum.
        c0: first channel of the block.
        n: sample of each pixel.
        pixel: index of each pixel among all samples.
        count: number of pixels of all samples.
    """
    N: tl.constexpr = total.shape[1]
    exists = (n < batch)[:, None]
    channel = c0 + tl.arange(0, N)[None, :]
    offset = pixel[:, None] * C_OUT + channel
    sign_offset = pixel[:, None] + (c0 // 32 + tl.arange(0, N // 32)[None, :]) * count
    if row is not None:
        if ROW_PER_SAMPLE:
            total += tl.load(row + n[:, None] * C_OUT + channel, mask=exists)
        else:
            total += tl.load(row + channel)
    if signs is not None:
        positive = unpack_signs(tl.load(signs + sign_offset, mask=exists))
        total = tl.where(positive, total, total * 0.2)
    if residual is not None:
        h = tl.load(residual + offset, mask=exists).to(tl.float32)
        if RESIDUAL_ACTIVATED:
            h = inverse_leaky(h)
        total += h
    if signs_out is not None:
        tl.store(signs_out + sign_offset, pack_signs(total > 0), mask=exists)
    if ACTIVATE:
        total = leaky(total)
    tl.store(out + offset, total, mask=exists)


@triton.jit(do_not_specialize=["batch"])
def cdrl_conv3x3(
    out,
    x,
    weight,
    row,
    residual,
    signs,
    signs_out,
    batch,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROW_PER_SAMPLE: tl.constexpr,
    RESIDUAL_ACTIVATED: tl.constexpr,
    ACTIVATE: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    TILES: tl.constexpr = C_OUT // BLOCK_N
    # Consecutive programs compute the channels of one block of pixels, then the next block: the
    # input is read from memory once, and the weights stay in L2.
    block, c0 = tl.program_id(0) // TILES, tl.program_id(0) % TILES * BLOCK_N
    n, h, w, n0, h0, w0 = pixels(block, HEIGHT, WIDTH, TMA, BOX_N, BOX_H, BOX_W)
    # 64 bits: a large batch has more than 2³¹ elements.
    pixel = n.to(tl.int64) * (HEIGHT * WIDTH) + (h * WIDTH + w)
    channel = c0 + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(9 * (C_IN // BLOCK_K)):
        tap, k0 = step % 9, step // 9 * BLOCK_K
        dy, dx = tap // 3 - 1, tap % 3 - 1
        if TRANSPOSED:
            tap = 8 - tap
        if TMA:
            # TMA loads zeros outside of the image and of the batch.
            a = tl.reshape(x.load([n0, h0 + dy, w0 + dx, k0]), (BLOCK_M, BLOCK_K))
            if TRANSPOSED:
                b = tl.reshape(weight.load([tap, c0, k0]), (BLOCK_N, BLOCK_K)).T
            else:
                b = tl.reshape(weight.load([tap, k0, c0]), (BLOCK_K, BLOCK_N))
        else:
            k = k0 + tl.arange(0, BLOCK_K)
            inside = (h + dy >= 0) & (h + dy < HEIGHT) & (w + dx >= 0) & (w + dx < WIDTH)
            shifted = (pixel + (dy * WIDTH + dx)) * C_IN
            exists = (inside & (n < batch))[:, None]
            a = tl.load(x + shifted[:, None] + k[None, :], mask=exists, other=0.0)
            matrix = weight + tap * (C_IN * C_OUT)
            if TRANSPOSED:
                b = tl.load(matrix + channel[:, None] * C_IN + k[None, :]).T
            else:
                b = tl.load(matrix + k[:, None] * C_OUT + channel[None, :])
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if PARTS == 2:
        # In two halves: with all channels and their residuals at once, registers exceed 128.
        halves = tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2))
        parts = tl.split(tl.permute(halves, (0, 2, 1)))
    else:
        parts = (total,)
    count = batch.to(tl.int64) * (HEIGHT * WIDTH)
    for i in tl.static_range(PARTS):
        first = c0 + i * (BLOCK_N // PARTS)
        epilogue(
            parts[i], first, n, pixel, batch, count, out, row, residual, signs, signs_out,
            C_OUT, ROW_PER_SAMPLE, RESIDUAL_ACTIVATED, ACTIVATE,
        )  # fmt: skip


def arguments(
    capability: int,
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
    blocks: Blocks | None = None,
) -> Launch:
    """Return the launch of `conv3x3` on a compute capability; ``blocks`` as for `tiling`."""
    batch, height, width, c_in = x.shape
    channels = out.shape[3]
    half = x.element_size() == 2
    tile = tiling(
        (batch, height, width, c_in),
        channels,
        half=half,
        exact=not half and input_precision == "ieee",
        capability=capability,
        aligned=x.data_ptr() % _ALIGNMENT == 0 and weight.data_ptr() % _ALIGNMENT == 0,
        blocks=blocks,
    )
    source, matrix = (x, weight) if not tile.tma else _descriptors(x, weight, transposed, tile)
    values: dict[str, Any] = {
        "out": out,
        "x": source,
        "weight": matrix,
        "row": row,
        "residual": residual,
        "signs": signs,
        "signs_out": signs_out,
        "batch": batch,
        "HEIGHT": height,
        "WIDTH": width,
        "C_IN": c_in,
        "C_OUT": channels,
        "TRANSPOSED": transposed,
        "ROW_PER_SAMPLE": row is not None and row.shape[0] > 1,
        "RESIDUAL_ACTIVATED": residual_activated,
        "ACTIVATE": activate,
        "PRECISION": input_precision,
        "TMA": tile.tma,
        "BOX_N": tile.box[0],
        "BOX_H": tile.box[1],
        "BOX_W": tile.box[2],
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "PARTS": 2 if tile.block_n >= 128 else 1,
    }
    options = {**OPTIONS, "num_warps": tile.warps, "num_stages": tile.stages}
    if tile.warps == 4:
        # Without a limit the assembler spills registers, to fit more programs on an SM.
        options["maxnreg"] = 255
    return Launch(cdrl_conv3x3, tile.programs(batch, height, width, channels), values, options)


def _descriptors(x: Tensor, weight: Tensor, transposed: bool, tile: Tiling) -> tuple[Any, Any]:
    """Return TMA descriptors of input and weights.

    Created on the host, they are kernel arguments passed by value: they need no memory and no time
    on the device, and a captured graph contains them.
    """
    block = (tile.block_n, tile.block_k) if transposed else (tile.block_k, tile.block_n)
    return (
        TensorDescriptor.from_tensor(x, [*tile.box, tile.block_k]),
        TensorDescriptor.from_tensor(weight, [1, *block]),
    )


def conv3x3(capability: int, out: Tensor, *rest: Any) -> None:
    """Write ``out`` and ``signs_out``; arguments as `arguments`, tensors dense and not empty."""
    launch(arguments(capability, out, *rest), out.device)
