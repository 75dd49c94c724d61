"""Device functions of the Triton kernel: one operation of the table of lowering.py."""

from __future__ import annotations

import triton
import triton.language as tl

from cdrl_fast.ops.mlp_chain.lowering import FIELDS, SLOPE_FORMS
from cdrl_fast.ops.mlp_chain.program import KINDS


def _constant(names: tuple[str, ...], name: str) -> tl.constexpr:
    return tl.constexpr(names.index(name))


DEPTH, WIDTH = _constant(FIELDS, "depth"), _constant(FIELDS, "width")
FP32, OPERAND = _constant(FIELDS, "fp32"), _constant(FIELDS, "operand")
WEIGHT, BIAS = _constant(FIELDS, "weight"), _constant(FIELDS, "bias")
ROW, ROW_COLUMNS = _constant(FIELDS, "row"), _constant(FIELDS, "row_columns")
SLOPE_FORM, SLOPE = _constant(FIELDS, "slope_form"), _constant(FIELDS, "slope")
SLOPE_LEAK, X = _constant(FIELDS, "slope_leak"), _constant(FIELDS, "x")
ADDEND_1, ADDEND_2 = _constant(FIELDS, "addend_1"), _constant(FIELDS, "addend_2")
KIND, LEAK = _constant(FIELDS, "kind"), _constant(FIELDS, "leak")
ACTIVATED, ACTIVATED_FP32 = _constant(FIELDS, "activated"), _constant(FIELDS, "activated_fp32")
SLOPE_OUT_FORM, SLOPE_OUT = _constant(FIELDS, "slope_out_form"), _constant(FIELDS, "slope_out")
FIELD_COUNT = tl.constexpr(len(FIELDS))
LEAKY, SILU = _constant(KINDS, "leaky_relu"), _constant(KINDS, "silu")
TANH, SOFTPLUS = _constant(KINDS, "tanh"), _constant(KINDS, "softplus")
SIGMOID = _constant(KINDS, "sigmoid")
NO_SLOPE, SIGNS = _constant(SLOPE_FORMS, "none"), _constant(SLOPE_FORMS, "signs")


@triton.jit
def log_of_one_plus(u):
    """Return ln(1 + u) for u in [0, 1], with a small relative error."""
    p = -0.0033184201 * u + 0.020204348
    p = p * u - 0.05766400
    p = p * u + 0.10680511
    p = p * u - 0.15355369
    p = p * u + 0.19695392
    p = p * u - 0.24958585
    p = p * u + 0.33330512
    p = p * u - 0.49999931
    return (p * u + 1.0) * u


@triton.jit
def hyperbolic_tangent(x):
    """Return tanh(x), with a small relative error."""
    square = x * x
    p = -0.0056039053 * square + 0.020551711
    p = p * square - 0.053714104
    p = p * square + 0.13331152
    p = p * square - 0.33333272
    # Near zero the quotient would lose the leading digits.
    near = p * square * x + x
    far = 1.0 - 2.0 / (tl.exp(x + x) + 1.0)
    return tl.where(square > 0.4, far, near)


@triton.jit
def activated(x, kind, leak):
    """Return activation(x) and its slope; the slope of leaky_relu is not computed."""
    value, slope = x, tl.full(x.shape, 1.0, tl.float32)
    if kind == LEAKY:
        value = tl.where(x > 0.0, x, x * leak)
    elif kind == TANH:
        value = hyperbolic_tangent(x)
        slope = 1.0 - value * value
    elif kind == SOFTPLUS:
        small = tl.exp(-tl.abs(x))
        value = tl.where(x > 0.0, x, 0.0) + log_of_one_plus(small)
        slope = tl.where(x > 0.0, 1.0, small) / (1.0 + small)
    elif (kind == SILU) | (kind == SIGMOID):
        logistic = 1.0 / (1.0 + tl.exp(-x))
        if kind == SILU:
            value = x * logistic
            slope = logistic * (1.0 + x * (1.0 - logistic))
        else:
            value = logistic
            slope = logistic * (1.0 - logistic)
    return value, slope


@triton.jit
def product(operand, weight, depth, width, n, SAMPLES: tl.constexpr, K: tl.constexpr):
    """Return columns n (1, N) of operand (SAMPLES, depth) · weight (depth, width)."""
    m = tl.arange(0, SAMPLES)[:, None]
    total = tl.zeros((SAMPLES, n.shape[1]), tl.float32)
    for k0 in tl.range(0, depth, K, num_stages=3):
        k = k0 + tl.arange(0, K)
        a = tl.load(operand + m * depth + k[None, :], mask=(k < depth)[None, :], other=0.0)
        inside = (k < depth)[:, None] & (n < width)
        w = tl.load(weight + k[:, None] * width + n, mask=inside, other=0.0)
        total = tl.dot(a, w, total, input_precision="ieee")
    return total


@triton.jit
def operation(
    fields,
    operands,
    weights,
    weights_fp32,
    slots,
    slots_int32,
    slots_half,
    rows,
    rows_stride,
    remaining,
    SAMPLES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Run one operation of the table, N columns at a time; products K terms at a time.

    Args:
        fields: the operation's row of the table.
        operands, weights: slots and weights in the dtype of the product.
        weights_fp32: weights in float32.
        slots, slots_int32, slots_half: the slots as three dtypes; the last may be None.
        rows: the first sample's row, or None.
        rows_stride: elements from one sample's row to the next.
        remaining: number of samples from the block's first to the end of the batch.
    """
    # Known multiples allow loads of 16 bytes.
    depth = tl.multiple_of(tl.load(fields + DEPTH), 16)
    width = tl.multiple_of(tl.load(fields + WIDTH), 16)
    PACKED: tl.constexpr = 32 // operands.dtype.element_ty.primitive_bitwidth
    operand = operands + tl.load(fields + OPERAND) * (SAMPLES * PACKED)
    weight = weights + tl.multiple_of(tl.load(fields + WEIGHT), 32)
    m = tl.arange(0, SAMPLES)[:, None]
    for begin in range(0, width, N):
        n = begin + tl.arange(0, N)[None, :]
        inside = n < width
        offset = m * width + n
        x = product(operand, weight, depth, width, n, SAMPLES, K)
        bias, row = tl.load(fields + BIAS), tl.load(fields + ROW)
        row_columns = tl.load(fields + ROW_COLUMNS)
        addend_1, addend_2 = tl.load(fields + ADDEND_1), tl.load(fields + ADDEND_2)
        x_slot = tl.load(fields + X)
        if bias >= 0:
            x += tl.load(weights_fp32 + tl.multiple_of(bias, 32) + n, mask=inside, other=0.0)
        if rows is not None:  # noqa: SIM102 (decided when the kernel is compiled)
            if row >= 0:
                in_row = (n < row_columns) & (m < remaining)
                x += tl.load(rows + m * rows_stride + (row + n), mask=in_row, other=0.0)
        x = multiply_by_slope(x, fields, slots, slots_int32, begin, width, SAMPLES, N)
        if addend_1 >= 0:
            x += tl.load(slots + addend_1 * SAMPLES + offset, mask=inside, other=0.0)
        if addend_2 >= 0:
            x += tl.load(slots + addend_2 * SAMPLES + offset, mask=inside, other=0.0)
        if x_slot >= 0:
            tl.store(slots + x_slot * SAMPLES + offset, x, mask=inside)
        store_activation(
            x, fields, slots, slots_int32, slots_half, begin, width, SAMPLES, N
        )  # fmt: skip


@triton.jit
def multiply_by_slope(
    x, fields, slots, slots_int32, begin, width, SAMPLES: tl.constexpr, N: tl.constexpr
):
    """Return x times the slope that the forward pass stored; x if the operation has none."""
    form = tl.load(fields + SLOPE_FORM)
    if form != NO_SLOPE:
        m = tl.arange(0, SAMPLES)[:, None]
        n = begin + tl.arange(0, N)[None, :]
        base = tl.load(fields + SLOPE) * SAMPLES
        if form == SIGNS:
            # One load per int32, not per feature: addresses would fill registers.
            stride = (width + 31) // 32
            k = begin // 32 + tl.arange(0, N // 32)[None, :]
            sign_bits = tl.load(slots_int32 + base + m * stride + k, mask=k < stride, other=0)
            bits = (sign_bits[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
            leak = tl.load(fields + SLOPE_LEAK).to(tl.float32, bitcast=True)
            x = tl.where(tl.reshape(bits, (SAMPLES, N)) != 0, x, x * leak)
        else:
            x *= tl.load(slots + base + m * width + n, mask=n < width, other=0.0)
    return x


@triton.jit
def store_activation(
    x, fields, slots, slots_int32, slots_half, begin, width, SAMPLES: tl.constexpr, N: tl.constexpr
):
    """Store activation(x) and its slope, each if the operation has a slot for it."""
    activated_slot, slope_slot = tl.load(fields + ACTIVATED), tl.load(fields + SLOPE_OUT)
    form = tl.load(fields + SLOPE_OUT_FORM)
    m = tl.arange(0, SAMPLES)[:, None]
    n = begin + tl.arange(0, N)[None, :]
    offset, inside = m * width + n, n < width
    value, slope = x, x
    if (activated_slot >= 0) | (slope_slot >= 0):
        leak = tl.load(fields + LEAK).to(tl.float32, bitcast=True)
        value, slope = activated(x, tl.load(fields + KIND), leak)
    if activated_slot >= 0:
        if tl.load(fields + ACTIVATED_FP32) != 0:
            tl.store(slots + activated_slot * SAMPLES + offset, value, mask=inside)
        elif slots_half is not None:
            address = slots_half + activated_slot * (2 * SAMPLES) + offset
            tl.store(address, value.to(slots_half.dtype.element_ty), mask=inside)
    if form == SIGNS:
        bits = tl.where(inside & (x > 0.0), 1, 0).to(tl.uint32) << (n % 32).to(tl.uint32)
        sign_bits = tl.sum(tl.reshape(bits, (SAMPLES, N // 32, 32)), axis=2)
        stride = (width + 31) // 32
        k = begin // 32 + tl.arange(0, N // 32)[None, :]
        address = slots_int32 + slope_slot * SAMPLES + m * stride + k
        tl.store(address, sign_bits.to(tl.int32, bitcast=True), mask=k < stride)
    elif slope_slot >= 0:
        tl.store(slots + slope_slot * SAMPLES + offset, slope, mask=inside)
