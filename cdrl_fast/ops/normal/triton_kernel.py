"""`normal` in Triton."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import BLOCK, Launch, launch, layout, noise, place


@triton.jit(do_not_specialize=["seed", "draw", "first_sample"])
def cdrl_normal(
    out,
    batch: tl.int64,
    elements: tl.int64,
    seed: tl.int64,
    draw: tl.int64,
    first_sample: tl.int64,
    first_program: tl.int64,
    WHOLE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, block, at, inside = place(batch, elements, first_program, WHOLE, SMALL, BLOCK)
    z = noise(seed, draw, first_sample + sample, block)
    tl.store(out + at, z, mask=inside)


def arguments(out: Tensor, seed: int, draw: int, first_sample: int) -> Launch:
    batch = out.shape[0]
    elements = out.numel() // batch
    whole, small, programs = layout(batch, elements)
    values: dict[str, Any] = {
        "out": out,
        "batch": batch,
        "elements": elements,
        "seed": seed,
        "draw": draw,
        "first_sample": first_sample,
        "first_program": 0,
        "WHOLE": whole,
        "SMALL": small,
        "BLOCK": BLOCK,
    }
    return Launch(cdrl_normal, programs, values)


def normal(out: Tensor, seed: int, draw: int, first_sample: int) -> None:
    """Fills ``out``, float32, dense and not empty."""
    launch(arguments(out, seed, draw, first_sample), out.device)
