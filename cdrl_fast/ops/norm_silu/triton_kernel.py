"""`norm_silu` in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.norm_silu.reference import EPSILON, groups
from cdrl_fast.ops.triton_common import Launch, launch

TILE = 4096
"""Elements per step of a program."""
MIN_CHANNELS = 16
"""Fewest channels per program, so that its loads are wide."""
MAX_CHANNELS = 64
"""Most channels per program that has several groups."""


@triton.jit
def group_sums(sums, GROUP_SIZE: tl.constexpr, PROGRAM_CHANNELS: tl.constexpr):
    """Return each channel's sum over its group of GROUP_SIZE channels; (C,) → (C,)."""
    C: tl.constexpr = sums.shape[0]
    channel = tl.arange(0, C)
    if GROUP_SIZE == PROGRAM_CHANNELS:
        return tl.where(channel < PROGRAM_CHANNELS, tl.sum(sums, axis=0), 0.0)
    same_group = (channel // GROUP_SIZE)[:, None] == (channel // GROUP_SIZE)[None, :]
    return tl.sum(tl.where(same_group, sums[None, :], 0.0), axis=1)


@triton.jit
def moments(
    x,
    offset,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PROGRAM_CHANNELS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    """Return mean and variance (C,) of each channel's group, for PROGRAM_CHANNELS channels at x.

    Each lane runs Welford's recursion over its pixels; then the lanes' moments are combined about
    the group's mean. So nothing cancels, however large the mean is.
    """
    pixel, channel = tl.arange(0, P), tl.arange(0, C)
    mean, squares, steps = tl.zeros((P, C), tl.float32), tl.zeros((P, C), tl.float32), 0.0
    for first in tl.range(0, PIXELS, P):
        exists = (first + pixel < PIXELS)[:, None] & (channel < PROGRAM_CHANNELS)[None, :]
        position = (first + pixel)[:, None] * CHANNELS + channel[None, :]
        h = tl.load(x + position, mask=exists, other=0.0).to(tl.float32) + offset[None, :]
        steps += 1.0
        difference = tl.where(exists, h - mean, 0.0)
        mean += difference * (1.0 / steps)
        squares += difference * (h - mean)
    # Pixels per lane: some lanes have none in the last step.
    count = ((PIXELS - 1 - pixel + P) // P).to(tl.float32)[:, None]
    total = group_sums(tl.sum(count * mean, axis=0), GROUP_SIZE, PROGRAM_CHANNELS)
    group_mean = total * (1.0 / (PIXELS * GROUP_SIZE))
    deviation = mean - group_mean[None, :]
    squares += count * deviation * deviation
    total = group_sums(tl.sum(squares, axis=0), GROUP_SIZE, PROGRAM_CHANNELS)
    return group_mean, total * (1.0 / (PIXELS * GROUP_SIZE))


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
    PROGRAM_CHANNELS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    PARTS: tl.constexpr = CHANNELS // PROGRAM_CHANNELS
    sample = (tl.program_id(0) // PARTS).to(tl.int64)
    first_channel = (tl.program_id(0) % PARTS) * PROGRAM_CHANNELS
    pixel, lane = tl.arange(0, P), tl.arange(0, C)
    exists, channel = lane < PROGRAM_CHANNELS, first_channel + lane
    start = sample * (PIXELS * CHANNELS) + first_channel
    conv_bias = tl.zeros((C,), tl.float32)
    if offset is not None:
        conv_bias = tl.load(offset + channel, mask=exists, other=0.0)
    mean, variance = moments(
        x + start, conv_bias, PIXELS, CHANNELS, PROGRAM_CHANNELS, GROUP_SIZE, P, C
    )
    slope = tl.load(weight + channel, mask=exists, other=0.0) / tl.sqrt_rn(variance + EPSILON)
    shift = tl.load(bias + channel, mask=exists, other=0.0)
    if row is not None:
        row += sample * row_stride
        scale = 1.0 + tl.load(row + channel, mask=exists, other=0.0)
        slope *= scale
        shift = shift * scale + tl.load(row + CHANNELS + channel, mask=exists, other=0.0)
    # This second pass over x reads from a cache.
    for first in tl.range(0, PIXELS, P):
        inside = (first + pixel < PIXELS)[:, None] & exists[None, :]
        position = start + (first + pixel)[:, None] * CHANNELS + lane[None, :]
        # Rounded as in `moments`: in a group that hardly varies, an error here would be amplified.
        h = tl.load(x + position, mask=inside, other=0.0).to(tl.float32) + conv_bias[None, :]
        h = (h - mean[None, :]) * slope[None, :] + shift[None, :]
        if ACTIVATE:
            h /= 1.0 + tl.exp(-h)
        tl.store(out + position, h.to(out.dtype.element_ty), mask=inside)


def program_channels(channels: int) -> int:
    """Return the channels per program: complete groups, a multiple of 8 if possible.

    8 channels in half precision are 16 bytes, the widest load. The number does not depend on the
    batch, so that the order of a sample's sums does not either.
    """
    group_size = channels // groups(channels)
    counts = (n for n in (1, 2, 4, 8, 16, 32) if n <= groups(channels))
    large = [n * group_size for n in counts if n * group_size >= MIN_CHANNELS]
    aligned = [n for n in large if n % 8 == 0 and n <= MAX_CHANNELS]
    return (aligned or large or [channels])[0]


def arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    row: Tensor | None,
    activate: bool,
    out: Tensor,
) -> Launch:
    """Return the launch of `norm_silu`."""
    batch, height, width, channels = x.shape
    per_program = program_channels(channels)
    block = triton.next_power_of_2(per_program)
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
        "PROGRAM_CHANNELS": per_program,
        "GROUP_SIZE": channels // groups(channels),
        "P": max(1, min(TILE // block, triton.next_power_of_2(height * width))),
        "C": block,
    }
    return Launch(cdrl_norm_silu, batch * (channels // per_program), values)


def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor | None,
    row: Tensor | None,
    activate: bool,
    out: Tensor,
) -> None:
    """Write ``out``; not for float64 or empty batches."""
    launch(arguments(x, weight, bias, offset, row, activate, out), x.device)
