"""`norm_silu` in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.norm_silu.reference import EPSILON, groups
from cdrl_fast.ops.triton_common import Launch, launch

TILE = 4096
"""Elements that a program takes at a time."""
CHANNELS = (16, 64)
"""Least channels of a program, side by side in memory, and most where it has several groups."""


@triton.jit
def over_groups(sums, SIZE: tl.constexpr, HELD: tl.constexpr):
    """Sums of groups of SIZE channels, at each of their channels; (C,) → (C,)."""
    C: tl.constexpr = sums.shape[0]
    channel = tl.arange(0, C)
    if SIZE == HELD:
        return tl.where(channel < HELD, tl.sum(sums, axis=0), 0.0)
    same = (channel // SIZE)[:, None] == (channel // SIZE)[None, :]
    return tl.sum(tl.where(same, sums[None, :], 0.0), axis=1)


@triton.jit
def moments(
    x,
    offset,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HELD: tl.constexpr,
    SIZE: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    """Mean and variance of each channel's group, (C,), of a sample's HELD channels at x.

    Each lane goes through its pixels by Welford's recursion; then lanes are put together about the
    common mean. So nothing cancels, whatever the mean.
    """
    pixel, channel = tl.arange(0, P), tl.arange(0, C)
    mean, squares, seen = tl.zeros((P, C), tl.float32), tl.zeros((P, C), tl.float32), 0.0
    for first in tl.range(0, PIXELS, P):
        exists = (first + pixel < PIXELS)[:, None] & (channel < HELD)[None, :]
        at = (first + pixel)[:, None] * CHANNELS + channel[None, :]
        h = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) + offset[None, :]
        seen += 1.0
        step = tl.where(exists, h - mean, 0.0)
        mean += step * (1.0 / seen)
        squares += step * (h - mean)
    # Pixels of each lane: the last round may have left some lanes out.
    count = ((PIXELS - 1 - pixel + P) // P).to(tl.float32)[:, None]
    total = over_groups(tl.sum(count * mean, axis=0), SIZE, HELD)
    common = total * (1.0 / (PIXELS * SIZE))
    off = mean - common[None, :]
    total = over_groups(tl.sum(squares + count * off * off, axis=0), SIZE, HELD)
    return common, total * (1.0 / (PIXELS * SIZE))


@triton.jit(do_not_specialize=["row_stride"])
def cdrl_norm_silu(
    out,
    x,
    weight,
    bias,
    offset,
    row,
    row_stride: tl.int64,
    EPSILON: tl.constexpr,
    ACTIVATE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HELD: tl.constexpr,
    SIZE: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    PARTS: tl.constexpr = CHANNELS // HELD
    sample = (tl.program_id(0) // PARTS).to(tl.int64)
    first_channel = (tl.program_id(0) % PARTS) * HELD
    pixel, channel = tl.arange(0, P), tl.arange(0, C)
    held, mine = channel < HELD, first_channel + channel
    start = sample * (PIXELS * CHANNELS) + first_channel
    before = tl.zeros((C,), tl.float32)
    if offset is not None:
        before = tl.load(offset + mine, mask=held, other=0.0)
    mean, variance = moments(x + start, before, PIXELS, CHANNELS, HELD, SIZE, P, C)
    slope = tl.load(weight + mine, mask=held, other=0.0) / tl.sqrt_rn(variance + EPSILON)
    shift = tl.load(bias + mine, mask=held, other=0.0)
    if row is not None:
        row += sample * row_stride
        scale = 1.0 + tl.load(row + mine, mask=held, other=0.0)
        slope *= scale
        shift = shift * scale + tl.load(row + CHANNELS + mine, mask=held, other=0.0)
    # What was read a moment ago is read again, from a cache.
    for first in tl.range(0, PIXELS, P):
        exists = (first + pixel < PIXELS)[:, None] & held[None, :]
        at = start + (first + pixel)[:, None] * CHANNELS + channel[None, :]
        # As above, to the bit: where a group hardly varies, a rounding error would be much of it.
        h = tl.load(x + at, mask=exists, other=0.0).to(tl.float32) + before[None, :]
        h = (h - mean[None, :]) * slope[None, :] + shift[None, :]
        if ACTIVATE:
            h /= 1.0 + tl.exp(-h)
        tl.store(out + at, h.to(out.dtype.element_ty), mask=exists)


def held_channels(channels: int) -> int:
    """Channels of a program: whole groups, in pieces of 16 bytes of half precision if they can be.

    Does not depend on the batch, so that a sample's sums do not either.
    """
    least, most = CHANNELS
    size = channels // groups(channels)
    held = [n * size for n in (1, 2, 4, 8, 16, 32) if n <= groups(channels) and n * size >= least]
    aligned = [n for n in held if n % 8 == 0 and n <= most]
    return (aligned or held or [channels])[0]


def arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    row: Tensor | None,
    activate: bool,
    out: Tensor,
) -> Launch:
    batch, height, width, channels = x.shape
    held = held_channels(channels)
    block = triton.next_power_of_2(held)
    values = {
        "out": out,
        "x": x,
        "weight": weight,
        "bias": bias,
        "offset": offset,
        "row": row,
        "row_stride": 0 if row is None or row.shape[0] == 1 else row.stride(0),
        "EPSILON": EPSILON,
        "ACTIVATE": activate,
        "PIXELS": height * width,
        "CHANNELS": channels,
        "HELD": held,
        "SIZE": channels // groups(channels),
        "P": max(1, min(TILE // block, triton.next_power_of_2(height * width))),
        "C": block,
    }
    return Launch(cdrl_norm_silu, batch * (channels // held), values)


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    row: Tensor | None,
    activate: bool,
    out: Tensor,
) -> None:
    """Writes ``out``; not float64 and not empty."""
    launch(arguments(x, weight, bias, offset, row, activate, out), x.device)
