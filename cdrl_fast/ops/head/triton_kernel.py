"""`head` in Triton."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import Launch, launch

TILE = 4096
"""Elements per step of a program."""


@triton.jit
def cdrl_head(
    out,
    gradient,
    a,
    rows,
    scale: tl.float32,
    ROW_PER_SAMPLE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    # One program per sample, so that the order of its sum is the same in any batch.
    sample = tl.program_id(0).to(tl.int64)
    if ROW_PER_SAMPLE:
        rows += sample * CHANNELS
    a += sample * (PIXELS * CHANNELS)
    if gradient is not None:
        gradient += sample * (PIXELS * CHANNELS)
    total = tl.zeros((P, C), tl.float32)
    for first_channel in tl.static_range(0, CHANNELS, C):
        channel = first_channel + tl.arange(0, C)
        row = tl.load(rows + channel)[None, :]
        slope = scale * row
        for first in tl.range(0, PIXELS, P):
            pixel = first + tl.arange(0, P)
            offset = pixel[:, None] * CHANNELS + channel[None, :]
            exists = (pixel < PIXELS)[:, None]
            h = tl.load(a + offset, mask=exists, other=0.0).to(tl.float32)
            total += tl.where(h > 0.0, h, 0.0) * row
            if gradient is not None:
                g = tl.where(h > 0.0, slope, 0.0).to(gradient.dtype.element_ty)
                tl.store(gradient + offset, g, mask=exists)
    tl.store(out + sample, tl.sum(tl.sum(total, axis=1), axis=0))


def arguments(
    a: Tensor, rows: Tensor, scale: float, out: Tensor, gradient: Tensor | None
) -> Launch:
    """Return the launch of `head`."""
    batch, height, width, channels = a.shape
    # The largest power of two that divides the channels, at most 256.
    block = min(channels & -channels, 256)
    values = {
        "out": out,
        "gradient": gradient,
        "a": a,
        "rows": rows,
        "scale": scale,
        "ROW_PER_SAMPLE": rows.shape[0] > 1,
        "PIXELS": height * width,
        "CHANNELS": channels,
        "P": min(TILE // block, triton.next_power_of_2(height * width)),
        "C": block,
    }
    return Launch(cdrl_head, batch, values)


def head(a: Tensor, *rest: Any) -> None:
    """Write ``out`` and ``gradient`` unless that is None; not for float64 or empty batches."""
    launch(arguments(a, *rest), a.device)
