"""`normal` in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.triton_common import (
    Launch,
    elementwise_launch,
    launch,
    noise,
    program_elements,
)


@triton.jit(do_not_specialize=["seed", "draw", "first_sample"])
def cdrl_normal(
    out,
    batch: tl.int64,
    elements: tl.int64,
    seed: tl.int64,
    draw: tl.int64,
    first_sample: tl.int64,
    first_program: tl.int64,
    FULL_BLOCKS: tl.constexpr,
    SHORT_SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the normals of one program's elements of ``out``, (batch, elements)."""
    sample, block, offset, inside = program_elements(
        batch, elements, first_program, FULL_BLOCKS, SHORT_SAMPLES, BLOCK
    )
    z = noise(seed, draw, first_sample + sample, block)
    tl.store(out + offset, z, mask=inside)


def arguments(out: Tensor, seed: int, draw: int, first_sample: int) -> Launch:
    """Return the launch that fills ``out``, as `normal` describes it."""
    values = {"seed": seed, "draw": draw, "first_sample": first_sample}
    return elementwise_launch(cdrl_normal, out, values)


def normal(out: Tensor, seed: int, draw: int, first_sample: int) -> None:
    """Fill ``out``, float32, dense and not empty."""
    launch(arguments(out, seed, draw, first_sample), out.device)
