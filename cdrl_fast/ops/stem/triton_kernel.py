"""`stem` in Triton: patches of 3×3 pixels times the weight, as one small matrix product."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import Launch, launch, leaky, pack_signs

PIXELS = 64
"""Pixels per program."""


@triton.jit(do_not_specialize=["pixels"])
def cdrl_stem(
    out,
    signs,
    y,
    weight,
    bias,
    pixels: tl.int64,
    COPIES: tl.constexpr,
    IMAGE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    AREA: tl.constexpr = HEIGHT * WIDTH
    PARTS: tl.constexpr = CHANNELS // C
    first = (tl.program_id(0) // PARTS).to(tl.int64) * P
    part = tl.program_id(0) % PARTS
    # One 64-bit division per program; the lanes count up from its result.
    first_sample = first // AREA
    lane = (first - first_sample * AREA).to(tl.int32) + tl.arange(0, P)
    next_samples = lane // AREA
    position = lane - next_samples * AREA
    row = position // WIDTH
    column = position % WIDTH
    pixel = first + tl.arange(0, P)
    exists = pixel < pixels

    # Entry k of a patch is image channel k % IMAGE of tap k // IMAGE. Lanes are pixels, which are
    # contiguous within a row.
    k = tl.arange(0, K)
    tap = k // IMAGE
    dy = (tap // 3 - 1)[:, None]
    dx = (tap % 3 - 1)[:, None]
    y_row = dy + row[None, :]
    y_column = dx + column[None, :]
    inside = (y_row >= 0) & (y_row < HEIGHT) & (y_column >= 0) & (y_column < WIDTH)
    inside = inside & exists[None, :] & (tap < 9)[:, None]
    y += first_sample * (IMAGE * AREA)
    offset = (k % IMAGE * AREA)[:, None] + y_row * WIDTH + y_column
    patch = tl.load(y + (next_samples * (IMAGE * AREA))[None, :] + offset, mask=inside, other=0.0)

    channel = part * C + tl.arange(0, C)
    w = tl.load(weight + k[:, None] * CHANNELS + channel[None, :], mask=(tap < 9)[:, None], other=0)
    patch = tl.trans(patch.to(w.dtype))
    h = tl.dot(patch, w, input_precision="ieee") + tl.load(bias + channel)[None, :]
    a = leaky(h).to(out.dtype.element_ty)
    for copy in tl.static_range(COPIES):
        offset = (copy * pixels + pixel)[:, None] * CHANNELS + channel[None, :]
        tl.store(out + offset, a, mask=exists[:, None])
    if signs is not None:
        plane = part * (C // 32) + tl.arange(0, C // 32)
        packed = pack_signs(h > 0.0)
        for copy in tl.static_range(COPIES):
            offset = (plane[None, :] * COPIES + copy) * pixels + pixel[:, None]
            tl.store(signs + offset, packed, mask=exists[:, None])


def arguments(
    y: Tensor, weight: Tensor, bias: Tensor, copies: int, out: Tensor, signs: Tensor | None
) -> Launch:
    """Return the launch of `stem`."""
    batch, image, height, width = y.shape
    channels = weight.shape[2]
    pixels = batch * height * width
    # A power of two that divides the channels; float32 needs more registers per channel.
    block = min(channels & -channels, 64 if weight.dtype == torch.float32 else 128)
    values = {
        "out": out,
        "signs": signs,
        "y": y,
        "weight": weight,
        "bias": bias,
        "pixels": pixels,
        "COPIES": copies,
        "IMAGE": image,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "K": triton.next_power_of_2(9 * image),
        "P": PIXELS,
        "C": block,
    }
    return Launch(cdrl_stem, -(-pixels // PIXELS) * (channels // block), values)


def stem(y: Tensor, *rest: Any) -> None:
    """Write ``out``, and ``signs`` unless None; not for float64 or empty batches."""
    launch(arguments(y, *rest), y.device)
