"""Device code of the Triton room: one operation of the table, see `schedule.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from cdrl_fast.ops.mlp_chain.lowering import FIELDS, KEPT
from cdrl_fast.ops.mlp_chain.program import KINDS


def _constant(names: tuple[str, ...], name: str) -> tl.constexpr:
    return tl.constexpr(names.index(name))


DEPTH, WIDTH = _constant(FIELDS, "depth"), _constant(FIELDS, "width")
SINGLE, OPERAND = _constant(FIELDS, "single"), _constant(FIELDS, "operand")
WEIGHT, BIAS = _constant(FIELDS, "weight"), _constant(FIELDS, "bias")
ROW, COLUMNS = _constant(FIELDS, "row"), _constant(FIELDS, "columns")
SLOPE_KIND, SLOPE = _constant(FIELDS, "slope_kind"), _constant(FIELDS, "slope")
SLOPE_LEAK, PLAIN = _constant(FIELDS, "slope_leak"), _constant(FIELDS, "plain")
FIRST, SECOND = _constant(FIELDS, "first"), _constant(FIELDS, "second")
KIND, LEAK = _constant(FIELDS, "kind"), _constant(FIELDS, "leak")
RESULT, RESULT_SINGLE = _constant(FIELDS, "result"), _constant(FIELDS, "result_single")
KEPT_KIND, KEPT_AT = _constant(FIELDS, "kept_kind"), _constant(FIELDS, "kept")
FIELD_COUNT = tl.constexpr(len(FIELDS))
LEAKY, SILU = _constant(KINDS, "leaky_relu"), _constant(KINDS, "silu")
TANH, SOFTPLUS = _constant(KINDS, "tanh"), _constant(KINDS, "softplus")
SIGMOID = _constant(KINDS, "sigmoid")
NO_SLOPE, SIGNS = _constant(KEPT, "nothing"), _constant(KEPT, "signs")


@triton.jit
def log_of_one_plus(u):
    """ln(1 + u) for u in [0, 1], accurate relative to its value."""
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
    """activation(x), and its slope unless the signs of x tell it."""
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
    """Columns n (1, N) of operand (SAMPLES, depth) · weight (depth, width)."""
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
    at,
    operands,
    weights,
    singles,
    slots,
    signs,
    halves,
    rows,
    rows_stride,
    left,
    SAMPLES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The operation in a row of the table, N columns at a time; products K terms at a time."""
    # Known multiples let the loads be 16 bytes wide.
    depth = tl.multiple_of(tl.load(at + DEPTH), 16)
    width = tl.multiple_of(tl.load(at + WIDTH), 16)
    PACKED: tl.constexpr = 32 // operands.dtype.element_ty.primitive_bitwidth
    operand = operands + tl.load(at + OPERAND) * (SAMPLES * PACKED)
    weight = weights + tl.multiple_of(tl.load(at + WEIGHT), 32)
    m = tl.arange(0, SAMPLES)[:, None]
    for begin in range(0, width, N):
        n = begin + tl.arange(0, N)[None, :]
        inside = n < width
        place = m * width + n
        x = product(operand, weight, depth, width, n, SAMPLES, K)
        bias, row, columns = tl.load(at + BIAS), tl.load(at + ROW), tl.load(at + COLUMNS)
        first, second, plain = tl.load(at + FIRST), tl.load(at + SECOND), tl.load(at + PLAIN)
        if bias >= 0:
            x += tl.load(singles + tl.multiple_of(bias, 32) + n, mask=inside, other=0.0)
        if rows is not None:  # noqa: SIM102 (decided when the kernel is compiled)
            if row >= 0:
                given = (n < columns) & (m < left)
                x += tl.load(rows + m * rows_stride + (row + n), mask=given, other=0.0)
        x = sloped(x, at, slots, signs, begin, width, SAMPLES, N)
        if first >= 0:
            x += tl.load(slots + first * SAMPLES + place, mask=inside, other=0.0)
        if second >= 0:
            x += tl.load(slots + second * SAMPLES + place, mask=inside, other=0.0)
        if plain >= 0:
            tl.store(slots + plain * SAMPLES + place, x, mask=inside)
        finish(x, at, slots, signs, halves, begin, width, SAMPLES, N)


@triton.jit
def sloped(x, at, slots, signs, begin, width, SAMPLES: tl.constexpr, N: tl.constexpr):
    """x times the slope that the way forward kept, if one is named."""
    kind = tl.load(at + SLOPE_KIND)
    if kind != NO_SLOPE:
        m = tl.arange(0, SAMPLES)[:, None]
        n = begin + tl.arange(0, N)[None, :]
        base = tl.load(at + SLOPE) * SAMPLES
        if kind == SIGNS:
            # A word is read once for its 32 features, by few addresses, which fill registers.
            count = (width + 31) // 32
            word = begin // 32 + tl.arange(0, N // 32)[None, :]
            words = tl.load(signs + base + m * count + word, mask=word < count, other=0)
            bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
            leak = tl.load(at + SLOPE_LEAK).to(tl.float32, bitcast=True)
            x = tl.where(tl.reshape(bits, (SAMPLES, N)) != 0, x, x * leak)
        else:
            x *= tl.load(slots + base + m * width + n, mask=n < width, other=0.0)
    return x


@triton.jit
def finish(x, at, slots, signs, halves, begin, width, SAMPLES: tl.constexpr, N: tl.constexpr):
    """Stores activation(x) and its slope, where they are wanted."""
    result, kept, kept_kind = tl.load(at + RESULT), tl.load(at + KEPT_AT), tl.load(at + KEPT_KIND)
    m = tl.arange(0, SAMPLES)[:, None]
    n = begin + tl.arange(0, N)[None, :]
    place, inside = m * width + n, n < width
    value, slope = x, x
    if (result >= 0) | (kept >= 0):
        leak = tl.load(at + LEAK).to(tl.float32, bitcast=True)
        value, slope = activated(x, tl.load(at + KIND), leak)
    if result >= 0:
        if tl.load(at + RESULT_SINGLE) != 0:
            tl.store(slots + result * SAMPLES + place, value, mask=inside)
        elif halves is not None:
            to = halves + result * (2 * SAMPLES) + place
            tl.store(to, value.to(halves.dtype.element_ty), mask=inside)
    if kept_kind == SIGNS:
        bits = tl.where(inside & (x > 0.0), 1, 0).to(tl.uint32) << (n % 32).to(tl.uint32)
        words = tl.sum(tl.reshape(bits, (SAMPLES, N // 32, 32)), axis=2).to(tl.int32, bitcast=True)
        count = (width + 31) // 32
        word = begin // 32 + tl.arange(0, N // 32)[None, :]
        tl.store(signs + kept * SAMPLES + m * count + word, words, mask=word < count)
    elif kept >= 0:
        tl.store(slots + kept * SAMPLES + place, slope, mask=inside)
