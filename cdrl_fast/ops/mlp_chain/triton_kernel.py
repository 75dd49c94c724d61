"""`mlp_chain` in Triton: one kernel that reads a program's operations from a table."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.coefficients import COEFFICIENT_NAMES
from cdrl_fast.ops.mlp_chain.triton_device import FIELD_COUNT, SINGLE, operation
from cdrl_fast.ops.mlp_chain.triton_weights import SAMPLES, Packed, programs
from cdrl_fast.ops.triton_common import OPTIONS, Launch, advance_rng, launch, noise

NUMBERS = [
    "drift", "pull", "noise_std", "rescale", "batch", "dim", "steps", "rows_stride", "seed", "draw",
    "first_sample", "count", "blocks", "workspace", "stride", "state", "gradient_slot", "value_slot",
]  # fmt: skip


@triton.jit
def lanes(e0, SAMPLES: tl.constexpr, GROUPS: tl.constexpr):
    """Four elements a lane, GROUPS lanes a sample, from element e0 on.

    Returns:
        The sample in its block and the elements' block in the noise stream, (LANES,) each, and the
        elements, (LANES, 4).
    """
    lane = tl.arange(0, SAMPLES * GROUPS)
    group = e0 // 4 + lane % GROUPS
    return lane // GROUPS, group, group[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def load_state(state, y, left, dim, stride, SAMPLES: tl.constexpr, GROUPS: tl.constexpr):
    """Fills the state's slot, (SAMPLES, stride); what is not there is 0."""
    for e0 in range(0, stride, 4 * GROUPS):
        m, _, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < left)[:, None] & (element < dim)
        x = tl.load(y + m[:, None] * dim + element, mask=inside, other=0.0)
        tl.store(state + m[:, None] * stride + element, x, mask=element < stride)


@triton.jit
def store_gradient(gradient, slot, left, dim, stride, SAMPLES: tl.constexpr, GROUPS: tl.constexpr):
    for e0 in range(0, dim, 4 * GROUPS):
        m, _, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < left)[:, None] & (element < dim)
        x = tl.load(slot + m[:, None] * stride + element, mask=inside)
        tl.store(gradient + m[:, None] * dim + element, x, mask=inside)


@triton.jit
def coefficient(number, table, row, m, left):
    """The number, or of a table its row's entries for the samples, (LANES, 1)."""
    if table is None:
        return number
    else:
        return tl.load(table + row + m, mask=m < left, other=0.0)[:, None]


@triton.jit
def update(
    state,
    gradient,
    y,
    anchor,
    table,
    first_bad,
    drift,
    pull,
    noise_std,
    rescale,
    rng,
    seed,
    draw,
    first_sample,
    step,
    first,
    batch,
    dim,
    stride,
    last,
    SAMPLES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One Langevin step of a block's state; the last also writes y.

    y, anchor and table are where the block begins in them, its sample ``first``.
    """
    left = batch - first
    if rng is not None:
        # Here and not once for all steps, which would keep them in registers all the time.
        seed, draw, first_sample = tl.load(rng), tl.load(rng + 1), tl.load(rng + 2)
    draw += step
    for e0 in range(0, dim, 4 * GROUPS):
        m, group, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < left)[:, None] & (element < dim)
        at, outside = m[:, None] * stride + element, m[:, None] * dim + element
        before = tl.load(state + at, mask=inside, other=0.0)
        slope = tl.load(gradient + at, mask=inside, other=0.0)
        x = before + coefficient(drift, table, 0, m, left) * slope
        if anchor is not None:
            near = tl.load(anchor + outside, mask=inside, other=0.0)
            x -= coefficient(pull, table, batch, m, left) * (before - near)
        sample = m.to(tl.int64) + first
        z = noise(seed, draw, first_sample + sample, group)
        x += coefficient(noise_std, table, 2 * batch, m, left) * z
        if last:
            x *= coefficient(rescale, table, 3 * batch, m, left)
            tl.store(y + outside, x, mask=inside)
        tl.store(state + at, x, mask=inside)
        if first_bad is not None:
            # x - x is 0 for finite x alone.
            bad = tl.sum(((x - x != 0.0) & inside).to(tl.int32), axis=1) > 0
            code = (draw.to(tl.int64) << 31) + sample
            tl.atomic_min(first_bad + tl.zeros_like(group), code, mask=bad)


@triton.jit(
    do_not_specialize=NUMBERS, do_not_specialize_on_alignment=["y", "anchor", "rows", "table"]
)
def cdrl_mlp_chain(
    y,
    anchor,
    rows,
    table,
    rng,
    first_bad,
    value,
    gradient,
    operations,
    singles,
    weights,
    slots,
    signs,
    halves,
    drift: tl.float32,
    pull: tl.float32,
    noise_std: tl.float32,
    rescale: tl.float32,
    batch: tl.int32,
    dim: tl.int32,
    steps: tl.int32,
    rows_stride: tl.int32,
    seed: tl.int64,
    draw: tl.int64,
    first_sample: tl.int64,
    count: tl.int32,
    blocks: tl.int32,
    workspace: tl.int64,
    stride: tl.int32,
    state: tl.int32,
    gradient_slot: tl.int32,
    value_slot: tl.int32,
    SAMPLES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    N_SINGLE: tl.constexpr,
    K_SINGLE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A program takes blocks of samples through all steps, or through one gradient.

    Its slots are ``room`` words a sample, from ``slots`` on; ``signs`` and ``halves`` are the same
    memory as other types.
    """
    mine = tl.program_id(0) * workspace.to(tl.int64) * SAMPLES
    slots, signs = slots + mine, signs + mine
    if halves is not None:
        halves += 2 * mine
    stride = tl.multiple_of(stride, 16)
    state_at, gradient_at = slots + state * SAMPLES, slots + gradient_slot * SAMPLES
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block * SAMPLES
        left = batch - first
        # 64 bits to where a block begins, 32 within it.
        ours = dim.to(tl.int64) * first
        load_state(state_at, y + ours, left, dim, stride, SAMPLES, GROUPS)
        rows_at, anchor_at, table_at = rows, anchor, table
        if rows is not None:
            rows_at += rows_stride.to(tl.int64) * first
        if anchor is not None:
            anchor_at += ours
        if table is not None:
            table_at += first
        tl.debug_barrier()
        for step in range(steps):
            for i in range(count):
                at = operations + i * FIELD_COUNT
                if halves is None or tl.load(at + SINGLE) != 0:
                    operation(
                        at, slots, singles, singles, slots, signs, halves, rows_at, rows_stride,
                        left, SAMPLES, N_SINGLE, K_SINGLE,
                    )  # fmt: skip
                else:
                    operation(
                        at, halves, weights, singles, slots, signs, halves, rows_at, rows_stride,
                        left, SAMPLES, N, K,
                    )  # fmt: skip
                # What its threads have written, others read in the next.
                tl.debug_barrier()
            if gradient is None:
                update(
                    state_at, gradient_at, y + ours, anchor_at, table_at, first_bad, drift, pull,
                    noise_std, rescale, rng, seed, draw, first_sample, step, first, batch, dim,
                    stride, step == steps - 1, SAMPLES, GROUPS,
                )  # fmt: skip
                tl.debug_barrier()
        if gradient is not None:
            store_gradient(gradient + ours, gradient_at, left, dim, stride, SAMPLES, GROUPS)
            m = tl.arange(0, SAMPLES)
            f = tl.load(slots + value_slot * SAMPLES + m * 16)
            tl.store(value + first + m, f, mask=m < left)
            tl.debug_barrier()
    if rng is not None:
        # Read again: kept through the chain, it would take registers.
        advance_rng(rng, tl.load(rng + 1) + steps)


def arguments(
    packed: Packed,
    y: Tensor,
    anchor: Tensor | None,
    rows: Tensor | None,
    steps: int,
    table: Tensor | None,
    coefficients: tuple[float, float, float, float],
    place: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Launch:
    """The launch of a chain, or of one value and gradient where these are given.

    Tiles and warps are what fits into registers on every architecture. They are the same for every
    batch, so that a sample's bits do not depend on it.
    """
    (batch, dim), plan = y.shape, packed.schedule
    count = programs(batch, y.device)
    slots = packed.slots(count)
    halves = packed.halves
    half = halves is not None
    values: dict[str, Any] = {
        "y": y,
        "anchor": anchor,
        "rows": rows,
        "table": table,
        "rng": rng,
        "first_bad": first_bad,
        "value": value,
        "gradient": gradient,
        "operations": packed.table,
        "singles": packed.singles,
        "weights": halves,
        "slots": slots,
        "signs": slots.view(torch.int32),
        "halves": None if halves is None else slots.view(halves.dtype),
        **dict(zip(COEFFICIENT_NAMES, coefficients, strict=True)),
        "batch": batch,
        "dim": dim,
        "steps": steps,
        "rows_stride": 0 if rows is None or rows.shape[0] == 1 else rows.shape[1],
        **dict(zip(("seed", "draw", "first_sample"), place, strict=True)),
        "count": len(plan.table),
        "blocks": -(-batch // SAMPLES),
        "workspace": plan.workspace,
        "stride": plan.stride,
        "state": plan.state,
        "gradient_slot": plan.gradient,
        "value_slot": plan.value,
        "SAMPLES": SAMPLES,
        "N": 128,
        "K": 64,
        "N_SINGLE": 32 if half else 64,
        "K_SINGLE": 16,
        "GROUPS": 8,
    }
    return Launch(cdrl_mlp_chain, count, values, {**OPTIONS, "num_warps": 8, "maxnreg": 255})


def chain(packed: Packed, y: Tensor, *rest: Any) -> None:
    """Writes ``y``. All tensors float32 (``rng`` and ``first_bad`` int64), dense and not empty."""
    launch(arguments(packed, y, *rest), y.device)
    torch.autograd.graph.increment_version(y)


def value_and_gradient(packed: Packed, y: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """As in the reference; tensors float32, dense and not empty."""
    value, gradient = y.new_empty(y.shape[0]), torch.empty_like(y)
    nothing = (None, (0.0, 0.0, 0.0, 0.0), (0, 0, 0), None, None)
    call = arguments(packed, y, None, rows, 1, *nothing, value, gradient)
    launch(call, y.device)
    return value, gradient
