"""`pool` and `spread` in Triton."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import Launch, inverse_leaky, launch, leaky, pack_signs

TILE = 2048
"""Elements of the smaller array per program."""


@triton.jit
def squares(pixels, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    """Return this program's P pixels of the smaller array, and offsets of C channels of them.

    Returns:
        Pixels (int64, (P,)), whether they exist, the offsets of their elements in the smaller
        array, and of the upper left one of the four pixels in the larger array, int64 (P, C).
    """
    PARTS: tl.constexpr = CHANNELS // C
    first = (tl.program_id(0) // PARTS).to(tl.int64) * P
    channel = (tl.program_id(0) % PARTS) * C + tl.arange(0, C)
    # One 64-bit division per program; the lanes count up from its result.
    row = first // WIDTH
    lane = (first - row * WIDTH).to(tl.int32) + tl.arange(0, P)
    pixel = first + tl.arange(0, P)
    corner = (row + lane // WIDTH) * (4 * WIDTH) + 2 * (lane % WIDTH)
    small = pixel[:, None] * CHANNELS + channel[None, :]
    large = corner[:, None] * CHANNELS + channel[None, :]
    return pixel, pixel < pixels, small, large


@triton.jit(do_not_specialize=["pixels"])
def cdrl_pool(
    out,
    mean,
    signs,
    a,
    pixels: tl.int64,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    pixel, exists, small, large = squares(pixels, WIDTH, CHANNELS, P, C)
    below = a + large + 2 * WIDTH * CHANNELS
    top_left = tl.load(a + large, mask=exists[:, None])
    top_right = tl.load(a + large + CHANNELS, mask=exists[:, None])
    left = tl.load(below, mask=exists[:, None])
    right = tl.load(below + CHANNELS, mask=exists[:, None])
    top = inverse_leaky(top_left) + inverse_leaky(top_right)
    m = 0.25 * (top + (inverse_leaky(left) + inverse_leaky(right)))
    tl.store(out + small, leaky(m).to(out.dtype.element_ty), mask=exists[:, None])
    if mean is not None:
        tl.store(mean + small, m.to(mean.dtype.element_ty), mask=exists[:, None])
    if signs is not None:
        plane = (tl.program_id(0) % (CHANNELS // C)) * (C // 32) + tl.arange(0, C // 32)
        sign_offset = plane[None, :] * pixels + pixel[:, None]
        tl.store(signs + sign_offset, pack_signs(m > 0.0), mask=exists[:, None])


@triton.jit(do_not_specialize=["pixels"])
def cdrl_spread(
    out,
    g,
    pixels: tl.int64,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    _, exists, small, large = squares(pixels, WIDTH, CHANNELS, P, C)
    quarter = 0.25 * tl.load(g + small, mask=exists[:, None]).to(tl.float32)
    quarter = quarter.to(out.dtype.element_ty)
    below = out + large + 2 * WIDTH * CHANNELS
    tl.store(out + large, quarter, mask=exists[:, None])
    tl.store(out + large + CHANNELS, quarter, mask=exists[:, None])
    tl.store(below, quarter, mask=exists[:, None])
    tl.store(below + CHANNELS, quarter, mask=exists[:, None])


def _launch(kernel: Any, small: Tensor, tensors: dict[str, Tensor | None]) -> Launch:
    batch, height, width, channels = small.shape
    pixels = batch * height * width
    # The largest power of two that divides the channels, at most 256.
    block_c = min(channels & -channels, 256)
    block_p = TILE // block_c
    values = {"pixels": pixels, "WIDTH": width, "CHANNELS": channels, "P": block_p, "C": block_c}
    return Launch(kernel, -(-pixels // block_p) * (channels // block_c), {**tensors, **values})


def pool_arguments(a: Tensor, out: Tensor, signs: Tensor | None, mean: Tensor | None) -> Launch:
    """Return the launch of `pool`."""
    return _launch(cdrl_pool, out, {"out": out, "mean": mean, "signs": signs, "a": a})


def spread_arguments(g: Tensor, out: Tensor) -> Launch:
    """Return the launch of `spread`."""
    return _launch(cdrl_spread, g, {"out": out, "g": g})


def pool(a: Tensor, *rest: Any) -> None:
    """Write ``out``, and ``signs`` and ``mean`` unless None; not for float64 or empty batches."""
    launch(pool_arguments(a, *rest), a.device)


def spread(g: Tensor, out: Tensor) -> None:
    """Write ``out``; not for float64 or empty batches."""
    launch(spread_arguments(g, out), g.device)
