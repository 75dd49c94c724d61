"""`stem` in Triton: patches of 3×3 pixels times the weight, as one small matrix product."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import Launch, launch, leaky, pack_signs

PIXELS = 64
"""Pixels that one program takes."""


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
    # One 64-bit division a program; the lanes count on from there.
    first_sample = first // AREA
    lane = (first - first_sample * AREA).to(tl.int32) + tl.arange(0, P)
    over = lane // AREA
    place = lane - over * AREA
    row = place // WIDTH
    column = place % WIDTH
    pixel = first + tl.arange(0, P)
    exists = pixel < pixels

    # Entry k of a patch is image channel k % IMAGE of tap k // IMAGE. Pixels lie along the lanes:
    # neighbours in a row are neighbours in memory.
    k = tl.arange(0, K)
    tap = k // IMAGE
    dy = (tap // 3 - 1)[:, None]
    dx = (tap % 3 - 1)[:, None]
    below = dy + row[None, :]
    beside = dx + column[None, :]
    inside = (below >= 0) & (below < HEIGHT) & (beside >= 0) & (beside < WIDTH)
    inside = inside & exists[None, :] & (tap < 9)[:, None]
    image = y + first_sample * (IMAGE * AREA)
    near = (k % IMAGE * AREA)[:, None] + below * WIDTH + beside
    patch = tl.load(image + (over * (IMAGE * AREA))[None, :] + near, mask=inside, other=0.0)

    channel = part * C + tl.arange(0, C)
    w = tl.load(weight + k[:, None] * CHANNELS + channel[None, :], mask=(tap < 9)[:, None], other=0)
    patch = tl.trans(patch.to(w.dtype))
    h = tl.dot(patch, w, input_precision="ieee") + tl.load(bias + channel)[None, :]
    a = leaky(h).to(out.dtype.element_ty)
    for copy in tl.static_range(COPIES):
        at = (copy * pixels + pixel)[:, None] * CHANNELS + channel[None, :]
        tl.store(out + at, a, mask=exists[:, None])
    if signs is not None:
        word = part * (C // 32) + tl.arange(0, C // 32)
        words = pack_signs(h > 0.0)
        for copy in tl.static_range(COPIES):
            at = (word[None, :] * COPIES + copy) * pixels + pixel[:, None]
            tl.store(signs + at, words, mask=exists[:, None])


def arguments(
    y: Tensor, weight: Tensor, bias: Tensor, copies: int, out: Tensor, signs: Tensor | None
) -> Launch:
    batch, image, height, width = y.shape
    channels = weight.shape[2]
    pixels = batch * height * width
    # The largest power of two that divides the channels; float32 products take more registers.
    part = min(channels & -channels, 64 if weight.dtype == torch.float32 else 128)
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
        "C": part,
    }
    return Launch(cdrl_stem, -(-pixels // PIXELS) * (channels // part), values)


def stem(y: Tensor, *rest: Any) -> None:
    """Writes ``out`` and, where given, the signs; float32 images that are not empty."""
    launch(arguments(y, *rest), y.device)
