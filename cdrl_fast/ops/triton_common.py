"""Device code that several Triton kernels share: noise, sign words, the layout of work.

The same generator and polynomials as csrc/common/philox.h, where the coefficients are explained.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 256
"""Blocks of four elements that one program takes."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
"""Fusion is said aloud, since triton's own default changes with its versions."""


@triton.jit
def uniform(word):
    """A 32-bit word to (0, 1]."""
    return word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def minus_two_log(u):
    """-2 ln u for u in (0, 1], accurate relative to its value also near u = 1."""
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
    """Two words to two normals: sqrt(-2 ln u) (cos, sin)(2 pi v)."""
    v = uniform(second)
    shifted = v * 2.0 + 12582912.0  # rounds 2 v to an integer, which stands in the low bits
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
    # Half turns that were taken off leave a sign.
    flip = shifted.to(tl.int32, bitcast=True) << 31
    radius = (radius.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
    return radius * (c * rr + 1.0), radius * (s * r)


@triton.jit
def noise(seed, draw, sample, block):
    """Normals of blocks of four elements: sample and block (BLOCK,) → (BLOCK, 4)."""
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, block.to(tl.uint32), draw.to(tl.uint32), low, high)
    n0, n1 = box_muller(a, b)
    n2, n3 = box_muller(c, d)
    pairs = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(pairs, (block.shape[0], 4))


@triton.jit
def noise_of(seed, draw, sample, element):
    """Normals of single elements, for where blocks of four do not lie side by side.

    Four times the work of `noise`; sample (int64) has the shape of element.
    """
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(seed, (element // 4).to(tl.uint32), draw.to(tl.uint32), low, high)
    later = (element & 2) != 0
    even, odd = box_muller(tl.where(later, c, a), tl.where(later, d, b))
    return tl.where((element & 1) != 0, odd, even)


@triton.jit
def move_on(rng, draw):
    """Moves a state on to a draw: the last program to arrive does, when all have read it."""
    tl.debug_barrier()
    last = tl.atomic_add(rng + 3, 1) == tl.num_programs(0) - 1
    tl.store(rng + 3, 0, mask=last)
    tl.store(rng + 1, draw, mask=last)


@triton.jit
def leaky(h):
    """LeakyReLU with slope 0.2."""
    return tl.where(h > 0.0, h, 0.2 * h)


@triton.jit
def recovered(a):
    """What `leaky` gave a for; float32."""
    wide = a.to(tl.float32)
    return tl.where(wide > 0.0, wide, 5.0 * wide)


@triton.jit
def pack_signs(positive):
    """Words as in ops/signs.py: booleans (pixels, channels) → int32 (pixels, channels // 32)."""
    PIXELS: tl.constexpr = positive.shape[0]
    WORDS: tl.constexpr = positive.shape[1] // 32
    bits = tl.reshape(positive.to(tl.uint32), (PIXELS, WORDS, 32))
    # Each bit comes once, so that their sum is their union. The cast is for the interpreter.
    words = tl.sum(bits << tl.arange(0, 32).to(tl.uint32)[None, None, :], axis=2)
    return words.to(tl.uint32).to(tl.int32, bitcast=True)


@triton.jit
def unpack_signs(words):
    """The way back: int32 (pixels, words) → booleans (pixels, 32 words)."""
    PIXELS: tl.constexpr = words.shape[0]
    WORDS: tl.constexpr = words.shape[1]
    bits = words[:, :, None] >> tl.arange(0, 32)[None, None, :]
    return tl.reshape((bits & 1) != 0, (PIXELS, 32 * WORDS))


@triton.jit
def place(
    batch,
    elements,
    first_program,
    WHOLE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a program works on.

    Args:
        first_program: programs before it are left out; tests begin near the end of arrays that are
            too large to walk.
        WHOLE: elements is a multiple of four.
        SMALL: a sample has fewer than BLOCK blocks.

    Returns:
        Sample (int64) and block (int32) of each lane, (BLOCK,); offset of each element (int64) and
        whether it exists, (BLOCK, 4).
    """
    # The casts are for the interpreter, which gives a number the smallest type that holds it.
    blocks = (elements.to(tl.int64) + 3) // 4
    first = (first_program.to(tl.int64) + tl.program_id(0)) * BLOCK
    # One 64-bit division a program; the lanes count on from there.
    sample = first // blocks
    lane = (first - sample * blocks).to(tl.int32) + tl.arange(0, BLOCK)
    if SMALL:  # noqa: SIM108 (decided when the kernel is compiled)
        over = lane // blocks.to(tl.int32)
    else:
        over = (lane >= blocks.to(tl.int32)).to(tl.int32)
    block = lane - over * blocks.to(tl.int32)
    sample = sample + over
    inner = tl.arange(0, 4)[None, :]
    if WHOLE:
        # Plain to the compiler: four elements side by side on a 16-byte boundary.
        at = (first + tl.arange(0, BLOCK))[:, None] * 4 + inner
        inside = (sample < batch)[:, None] & (inner < 4)
    else:
        element = block.to(tl.int64)[:, None] * 4 + inner
        at = (sample * elements)[:, None] + element
        inside = (sample < batch)[:, None] & (element < elements)
    return sample, block, at, inside


@dataclass(frozen=True)
class Launch:
    """A kernel with all it is given: what runs it or only compiles it reads this."""

    kernel: Any
    programs: int
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=lambda: OPTIONS)


def layout(batch: int, elements: int) -> tuple[bool, bool, int]:
    """WHOLE, SMALL and the number of programs for an array (batch, elements)."""
    blocks = -(-elements // 4)
    return elements % 4 == 0, blocks < BLOCK, -(-batch * blocks // BLOCK)


def launch(call: Launch, device: torch.device) -> None:
    """Queues a kernel on the current stream of ``device``."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        call.kernel[(call.programs,)](**call.values, **call.options)
