"""`langevin_step` in Triton."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.coefficients import COEFFICIENT_NAMES
from cdrl_fast.ops.triton_common import (
    Launch,
    advance_rng,
    elementwise_launch,
    launch,
    noise,
    program_elements,
)


@triton.jit(do_not_specialize=["seed", "draw", "first_sample"])
def cdrl_langevin_step(
    out,
    x,
    grad,
    anchor,
    table,
    rng,
    first_bad,
    drift: tl.float32,
    pull: tl.float32,
    noise_std: tl.float32,
    rescale: tl.float32,
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
    """Update one program's elements of the state ``x``, (batch, elements), into ``out``."""
    sample, block, offset, inside = program_elements(
        batch, elements, first_program, FULL_BLOCKS, SHORT_SAMPLES, BLOCK
    )
    # The loads come first, so that they run while the noise is computed.
    state = tl.load(x + offset, mask=inside)
    gradient = tl.load(grad + offset, mask=inside).to(tl.float32)
    if anchor is not None:
        center = tl.load(anchor + offset, mask=inside)
    if table is not None:
        exists = sample < batch
        drift = tl.load(table + sample, mask=exists)[:, None]
        pull = tl.load(table + batch + sample, mask=exists)[:, None]
        noise_std = tl.load(table + 2 * batch + sample, mask=exists)[:, None]
        rescale = tl.load(table + 3 * batch + sample, mask=exists)[:, None]
    if rng is not None:
        seed = tl.load(rng)
        draw = tl.load(rng + 1)
        first_sample = tl.load(rng + 2)
    y = state + drift * gradient
    if anchor is not None:
        y -= pull * (state - center)
    y = rescale * (y + noise_std * noise(seed, draw, first_sample + sample, block))
    tl.store(out + offset, y, mask=inside)
    if first_bad is not None:
        # y - y is 0 only for finite y. Lanes without a bad element issue no atomic operation.
        bad = tl.sum(((y - y != 0.0) & inside).to(tl.int32), axis=1) > 0
        tl.atomic_min(
            first_bad + tl.zeros_like(block), (draw.to(tl.int64) << 31) + sample, mask=bad
        )
    if rng is not None:
        advance_rng(rng, draw + 1)


def arguments(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    coefficients: tuple[float, ...],
    position: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
) -> Launch:
    """Return the launch of one step; arguments as `native.arguments`."""
    values = {
        "x": x,
        "grad": grad,
        "anchor": anchor,
        "table": table,
        "rng": rng,
        "first_bad": first_bad,
        **dict(zip(COEFFICIENT_NAMES, coefficients, strict=True)),
        **dict(zip(("seed", "draw", "first_sample"), position, strict=True)),
    }
    return elementwise_launch(cdrl_langevin_step, out, values)


def langevin_step(out: Tensor, x: Tensor, *rest: Any) -> None:
    """Write ``out``, which may be ``x``; float32, dense and not empty."""
    launch(arguments(out, x, *rest), x.device)
