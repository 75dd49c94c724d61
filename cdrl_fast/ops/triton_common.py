"""Device functions that several Triton kernels share: noise, sign bits, positions of elements.

Generator and polynomials are those of csrc/common/philox.h, which explains the coefficients.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Blocks of four elements per program."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
"""Options of every launch; fusion is explicit, since triton's default depends on its version."""


@triton.jit
def uniform(integer):
    """Return a float32 in (0, 1] from a uint32."""
    return integer.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def minus_two_log(u):
    """Return -2 ln u for u in (0, 1], with a small relative error also near u = 1."""
    shifted = u.to(tl.int32, bitcast=True) - 0x3F400000
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x7FFFFF) + 0x3F400000).to(tl.float32, bitcast=True) - 1.0
    p = 0.13416791 * f - 0.28128944
    p = p * f + 0.34549650
    p = p * f - 0.40189617
    p = p * f + 0.49971236
    p = p * f - 0.66662151
    p = (p * f + 1.0) * f - 2.0
    return p * f + exponent * -1.38629436


@triton.jit
def box_muller(first, second):
    """Return two normals from two uint32: sqrt(-2 ln u) (cos, sin)(2 pi v)."""
    v = uniform(second)
    shifted = v * 2.0 + 12582912.0  # rounds 2 v to an integer, in the low bits
    r = v - (shifted - 12582912.0) * 0.5
    rr = r * r
    s = 39.536707 * rr - 76.549782
    s = s * rr + 81.601004
    s = s * rr - 41.341655
    s = s * rr + 6.2831852
    c = 56.340653 * rr - 85.254008
    c = c * rr + 64.935221
    c = c * rr - 19.739182
    radius = tl.sqrt_rn(minus_two_log(uniform(first)))
    # An odd number of half periods, subtracted from v, changes the sign.
    flip = shifted.to(tl.int32, bitcast=True) << 31
    radius = (radius.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    return radius * (c * rr + 1.0), radius * (s * r)


@triton.jit
def noise(seed, draw, sample, block):
    """Return the normals (BLOCK, 4) of blocks of four elements; sample and block are (BLOCK,)."""
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, block.to(tl.uint32), draw.to(tl.uint32), low, high)
    n0, n1 = box_muller(a, b)
    n2, n3 = box_muller(c, d)
    pairs = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(pairs, (block.shape[0], 4))


@triton.jit
def element_noise(seed, draw, sample, element):
    """Return the normals of single elements, for layouts without contiguous blocks of four.

    Costs four times as much as `noise`; sample (int64) has the shape of element.
    """
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, (element // 4).to(tl.uint32), draw.to(tl.uint32), low, high)
    second_pair = (element & 2) != 0
    even, odd = box_muller(tl.where(second_pair, c, a), tl.where(second_pair, d, b))
    return tl.where((element & 1) != 0, odd, even)


@triton.jit
def advance_rng(rng, draw):
    """Set the draw of an `rng_state`, in the last program, after all programs have read it."""
    tl.debug_barrier()
    last = tl.atomic_add(rng + 3, 1) == tl.num_programs(0) - 1
    tl.store(rng + 3, 0, mask=last)
    tl.store(rng + 1, draw, mask=last)


@triton.jit
def leaky(h):
    """Return LeakyReLU(h) with slope 0.2."""
    return tl.where(h > 0.0, h, 0.2 * h)


@triton.jit
def inverse_leaky(a):
    """Return h with `leaky`(h) = a, in float32."""
    a = a.to(tl.float32)
    return tl.where(a > 0.0, a, 5.0 * a)


@triton.jit
def pack_signs(positive):
    """Return sign bits, int32 (pixels, channels // 32), of booleans (pixels, channels)."""
    PIXELS: tl.constexpr = positive.shape[0]
    WORDS: tl.constexpr = positive.shape[1] // 32
    bits = tl.reshape(positive.to(tl.uint32), (PIXELS, WORDS, 32))
    # The bits are distinct, so their sum is their union. The interpreter needs the cast to uint32.
    packed = tl.sum(bits << tl.arange(0, 32).to(tl.uint32)[None, None, :], axis=2)
    return packed.to(tl.uint32).to(tl.int32, bitcast=True)


@triton.jit
def unpack_signs(sign_bits):
    """Return booleans (pixels, channels) from sign bits, int32 (pixels, channels // 32)."""
    PIXELS: tl.constexpr = sign_bits.shape[0]
    WORDS: tl.constexpr = sign_bits.shape[1]
    bits = sign_bits[:, :, None] >> tl.arange(0, 32)[None, None, :]
    return tl.reshape((bits & 1) != 0, (PIXELS, 32 * WORDS))


@triton.jit
def program_elements(
    batch,
    elements,
    first_program,
    FULL_BLOCKS: tl.constexpr,
    SHORT_SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the elements of (batch, elements) that this program computes.

    Args:
        batch: number of samples.
        elements: elements per sample.
        first_program: number of programs to skip; tests skip to the end of very large arrays.
        FULL_BLOCKS: elements is a multiple of four.
        SHORT_SAMPLES: a sample has fewer than BLOCK blocks.
        BLOCK: blocks of four elements per program.

    Returns:
        Sample (int64) and block (int32) of each lane, (BLOCK,); offset of each element (int64) and
        whether it exists, (BLOCK, 4).
    """
    # The interpreter needs the casts: it gives a number the smallest type that can represent it.
    blocks = (elements.to(tl.int64) + 3) // 4
    first = (first_program.to(tl.int64) + tl.program_id(0)) * BLOCK
    # One 64-bit division per program; the lanes count up from its result.
    sample = first // blocks
    lane = (first - sample * blocks).to(tl.int32) + tl.arange(0, BLOCK)
    if SHORT_SAMPLES:
        next_samples = lane // blocks.to(tl.int32)
    else:
        next_samples = (lane >= blocks.to(tl.int32)).to(tl.int32)
    block = lane - next_samples * blocks.to(tl.int32)
    sample = sample + next_samples
    inner = tl.arange(0, 4)[None, :]
    if FULL_BLOCKS:
        # From these the compiler sees four contiguous elements on a 16-byte boundary.
        offset = (first + tl.arange(0, BLOCK))[:, None] * 4 + inner
        inside = (sample < batch)[:, None] & (inner < 4)
    else:
        element = block.to(tl.int64)[:, None] * 4 + inner
        offset = (sample * elements)[:, None] + element
        inside = (sample < batch)[:, None] & (element < elements)
    return sample, block, offset, inside


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments and options, to run or only to compile.

    Attributes:
        kernel: the Triton kernel.
        programs: number of programs of the grid.
        values: arguments by name.
        options: launch options, such as ``num_warps``.
    """

    kernel: Any
    programs: int
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=lambda: OPTIONS)


def elementwise_launch(kernel: Any, out: Tensor, values: dict[str, Any]) -> Launch:
    """Return the launch of a kernel whose programs take `program_elements` of ``out``."""
    batch = out.shape[0]
    elements = out.numel() // batch
    blocks = -(-elements // 4)
    grid = {
        "batch": batch,
        "elements": elements,
        "first_program": 0,
        "FULL_BLOCKS": elements % 4 == 0,
        "SHORT_SAMPLES": blocks < BLOCK,
        "BLOCK": BLOCK,
    }
    return Launch(kernel, -(-batch * blocks // BLOCK), {"out": out, **values, **grid})


def launch(call: Launch, device: torch.device) -> None:
    """Start a kernel on the current stream of ``device``."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        call.kernel[(call.programs,)](**call.values, **call.options)
