"""`head` in Triton."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import Launch, launch

TILE = 4096
"""Elements of a sample that its program takes at a time."""


@triton.jit
def cdrl_head(
    out,
    gradient,
    a,
    rows,
    scale: tl.float32,
    EACH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
):
    # A sample is one program's, so that the order of its sum is the same in any batch.
    sample = tl.program_id(0).to(tl.int64)
    if EACH:
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
            at = pixel[:, None] * CHANNELS + channel[None, :]
            exists = (pixel < PIXELS)[:, None]
            h = tl.load(a + at, mask=exists, other=0.0).to(tl.float32)
            total += tl.where(h > 0.0, h, 0.0) * row
            if gradient is not None:
                g = tl.where(h > 0.0, slope, 0.0).to(gradient.dtype.element_ty)
                tl.store(gradient + at, g, mask=exists)
    tl.store(out + sample, tl.sum(tl.sum(total, axis=1), axis=0))


def arguments(
    a: Tensor, rows: Tensor, scale: float, out: Tensor, gradient: Tensor | None
) -> Launch:
    batch, height, width, channels = a.shape
    # The largest power of two that divides the channels.
    part = min(channels & -channels, 256)
    values = {
        "out": out,
        "gradient": gradient,
        "a": a,
        "rows": rows,
        "scale": scale,
        "EACH": rows.shape[0] > 1,
        "PIXELS": height * width,
        "CHANNELS": channels,
        "P": min(TILE // part, triton.next_power_of_2(height * width)),
        "C": part,
    }
    return Launch(cdrl_head, batch, values)


def head(a: Tensor, *rest: Any) -> None:
    """Writes the energies and, where given, the gradient; not float64 and not empty."""
    launch(arguments(a, *rest), a.device)
