"""`mlp_chain` in Triton: one kernel, which reads the operations of a program from a table."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.coefficients import COEFFICIENT_NAMES
from cdrl_fast.ops.mlp_chain.triton_device import FIELD_COUNT, FP32, operation
from cdrl_fast.ops.mlp_chain.triton_weights import SAMPLES, PackedWeights, program_count
from cdrl_fast.ops.triton_common import OPTIONS, Launch, advance_rng, launch, noise

SCALARS = [
    "drift", "pull", "noise_std", "rescale", "batch", "dim", "steps", "rows_stride", "seed", "draw",
    "first_sample", "operation_count", "blocks", "workspace", "stride", "state_slot",
    "gradient_slot", "value_slot",
]  # fmt: skip


@triton.jit
def lanes(e0, SAMPLES: tl.constexpr, GROUPS: tl.constexpr):
    """Return the elements of each lane: four per lane, GROUPS lanes per sample, from e0 on.

    Returns:
        Index of the sample in its block of samples and index of the four elements in the noise
        stream, (LANES,) each; indices of the elements, (LANES, 4).
    """
    lane = tl.arange(0, SAMPLES * GROUPS)
    group = e0 // 4 + lane % GROUPS
    return lane // GROUPS, group, group[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def load_state(state, y, remaining, dim, stride, SAMPLES: tl.constexpr, GROUPS: tl.constexpr):
    """Copy y into the state's slot, (SAMPLES, stride), with zeros as padding."""
    for e0 in range(0, stride, 4 * GROUPS):
        m, _, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < remaining)[:, None] & (element < dim)
        x = tl.load(y + m[:, None] * dim + element, mask=inside, other=0.0)
        tl.store(state + m[:, None] * stride + element, x, mask=element < stride)


@triton.jit
def store_gradient(
    gradient, slot, remaining, dim, stride, SAMPLES: tl.constexpr, GROUPS: tl.constexpr
):
    """Copy the gradient's slot, (SAMPLES, stride), into ``gradient`` without padding."""
    for e0 in range(0, dim, 4 * GROUPS):
        m, _, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < remaining)[:, None] & (element < dim)
        x = tl.load(slot + m[:, None] * stride + element, mask=inside)
        tl.store(gradient + m[:, None] * dim + element, x, mask=inside)


@triton.jit
def coefficient(number, table, row, m, remaining):
    """Return ``number``, or if there is a table the samples' entries, (LANES, 1)."""
    if table is None:
        return number
    else:
        return tl.load(table + row + m, mask=m < remaining, other=0.0)[:, None]


@triton.jit
def langevin_update(
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
    """Do one Langevin step on a block's state; the last step also writes y.

    y, anchor and table point to the block's first sample, whose index is ``first``.
    """
    remaining = batch - first
    if rng is not None:
        # Loaded in every step: from one step to the next they would occupy registers.
        seed, draw, first_sample = tl.load(rng), tl.load(rng + 1), tl.load(rng + 2)
    draw += step
    for e0 in range(0, dim, 4 * GROUPS):
        m, group, element = lanes(e0, SAMPLES, GROUPS)
        inside = (m < remaining)[:, None] & (element < dim)
        slot_offset, y_offset = m[:, None] * stride + element, m[:, None] * dim + element
        before = tl.load(state + slot_offset, mask=inside, other=0.0)
        slope = tl.load(gradient + slot_offset, mask=inside, other=0.0)
        x = before + coefficient(drift, table, 0, m, remaining) * slope
        if anchor is not None:
            center = tl.load(anchor + y_offset, mask=inside, other=0.0)
            x -= coefficient(pull, table, batch, m, remaining) * (before - center)
        sample = m.to(tl.int64) + first
        z = noise(seed, draw, first_sample + sample, group)
        x += coefficient(noise_std, table, 2 * batch, m, remaining) * z
        if last:
            x *= coefficient(rescale, table, 3 * batch, m, remaining)
            tl.store(y + y_offset, x, mask=inside)
        tl.store(state + slot_offset, x, mask=inside)
        if first_bad is not None:
            # x - x is 0 only for finite x.
            bad = tl.sum(((x - x != 0.0) & inside).to(tl.int32), axis=1) > 0
            code = (draw.to(tl.int64) << 31) + sample
            tl.atomic_min(first_bad + tl.zeros_like(group), code, mask=bad)


@triton.jit(
    do_not_specialize=SCALARS, do_not_specialize_on_alignment=["y", "anchor", "rows", "table"]
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
    weights_fp32,
    weights_half,
    slots,
    slots_int32,
    slots_half,
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
    operation_count: tl.int32,
    blocks: tl.int32,
    workspace: tl.int64,
    stride: tl.int32,
    state_slot: tl.int32,
    gradient_slot: tl.int32,
    value_slot: tl.int32,
    SAMPLES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    N_FP32: tl.constexpr,
    K_FP32: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Take blocks of samples through all steps, or compute their value and gradient.

    ``slots`` has ``workspace`` float32 per sample and program; ``slots_int32`` and ``slots_half``
    are the same memory as other dtypes.
    """
    program_offset = tl.program_id(0) * workspace.to(tl.int64) * SAMPLES
    slots, slots_int32 = slots + program_offset, slots_int32 + program_offset
    if slots_half is not None:
        slots_half += 2 * program_offset
    stride = tl.multiple_of(stride, 16)
    state = slots + state_slot * SAMPLES
    state_gradient = slots + gradient_slot * SAMPLES
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        first = block * SAMPLES
        remaining = batch - first
        # Offsets of blocks are 64-bit, offsets within a block 32-bit.
        block_offset = dim.to(tl.int64) * first
        load_state(state, y + block_offset, remaining, dim, stride, SAMPLES, GROUPS)
        block_rows, block_anchor, block_table = rows, anchor, table
        if rows is not None:
            block_rows += rows_stride.to(tl.int64) * first
        if anchor is not None:
            block_anchor += block_offset
        if table is not None:
            block_table += first
        tl.debug_barrier()
        for step in range(steps):
            for i in range(operation_count):
                fields = operations + i * FIELD_COUNT
                if slots_half is None or tl.load(fields + FP32) != 0:
                    operation(
                        fields, slots, weights_fp32, weights_fp32, slots, slots_int32, slots_half,
                        block_rows, rows_stride, remaining, SAMPLES, N_FP32, K_FP32,
                    )  # fmt: skip
                else:
                    operation(
                        fields, slots_half, weights_half, weights_fp32, slots, slots_int32,
                        slots_half, block_rows, rows_stride, remaining, SAMPLES, N, K,
                    )  # fmt: skip
                # The next operation reads what other threads of the program wrote.
                tl.debug_barrier()
            if gradient is None:
                langevin_update(
                    state, state_gradient, y + block_offset, block_anchor, block_table, first_bad,
                    drift, pull, noise_std, rescale, rng, seed, draw, first_sample, step, first,
                    batch, dim, stride, step == steps - 1, SAMPLES, GROUPS,
                )  # fmt: skip
                tl.debug_barrier()
        if gradient is not None:
            store_gradient(
                gradient + block_offset, state_gradient, remaining, dim, stride, SAMPLES, GROUPS
            )  # fmt: skip
            m = tl.arange(0, SAMPLES)
            f = tl.load(slots + value_slot * SAMPLES + m * 16)
            tl.store(value + first + m, f, mask=m < remaining)
            tl.debug_barrier()
    if rng is not None:
        # Loaded again: kept during the chain, it would occupy registers.
        advance_rng(rng, tl.load(rng + 1) + steps)


def arguments(
    packed: PackedWeights,
    y: Tensor,
    anchor: Tensor | None,
    rows: Tensor | None,
    steps: int,
    table: Tensor | None,
    coefficients: tuple[float, ...],
    position: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Launch:
    """Return the launch of a chain, or of one value and gradient if these are not None.

    Tiles and warps fit into the registers of every architecture. They are the same for every
    batch, so that a sample's bits do not depend on its batch.
    """
    (batch, dim), schedule = y.shape, packed.schedule
    programs = program_count(batch, y.device)
    slots = packed.slots(programs)
    weights_half = packed.weights_half
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
        "weights_fp32": packed.weights_fp32,
        "weights_half": weights_half,
        "slots": slots,
        "slots_int32": slots.view(torch.int32),
        "slots_half": None if weights_half is None else slots.view(weights_half.dtype),
        **dict(zip(COEFFICIENT_NAMES, coefficients, strict=True)),
        "batch": batch,
        "dim": dim,
        "steps": steps,
        "rows_stride": 0 if rows is None or rows.shape[0] == 1 else rows.shape[1],
        **dict(zip(("seed", "draw", "first_sample"), position, strict=True)),
        "operation_count": len(schedule.table),
        "blocks": -(-batch // SAMPLES),
        "workspace": schedule.workspace,
        "stride": schedule.stride,
        "state_slot": schedule.state,
        "gradient_slot": schedule.gradient,
        "value_slot": schedule.value,
        "SAMPLES": SAMPLES,
        "N": 128,
        "K": 64,
        "N_FP32": 64 if weights_half is None else 32,
        "K_FP32": 16,
        "GROUPS": 8,
    }
    return Launch(cdrl_mlp_chain, programs, values, {**OPTIONS, "num_warps": 8, "maxnreg": 255})


def chain(packed: PackedWeights, y: Tensor, *options: Any) -> None:
    """Run a chain and write ``y``.

    All tensors are dense, not empty and float32; ``rng`` and ``first_bad`` are int64.
    """
    launch(arguments(packed, y, *options), y.device)
    torch.autograd.graph.increment_version(y)


def value_and_gradient(
    packed: PackedWeights, y: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return value and gradient as the reference does; tensors float32, dense and not empty."""
    value, gradient = y.new_empty(y.shape[0]), torch.empty_like(y)
    unused = (None, (0.0, 0.0, 0.0, 0.0), (0, 0, 0), None, None)
    launch(arguments(packed, y, None, rows, 1, *unused, value, gradient), y.device)
    return value, gradient
