"""`stem_gradient` and `stem_langevin_` in Triton.

A matrix product with only 1 to 4 output channels as columns would leave most of a tensor core idle.
Instead, one product computes for each pixel of g what it adds to each of its nine neighbours; then
each image pixel gathers nine of these numbers. So g is read once, apart from the borders of tiles,
and few columns are idle.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.coefficients import COEFFICIENT_NAMES, Coefficient, coefficient_table
from cdrl_fast.ops.philox import split_rng
from cdrl_fast.ops.triton_common import OPTIONS, Launch, advance_rng, element_noise, launch, noise

SIDE = 8
"""Side of the square of image pixels per program."""


@triton.jit
def tap_sums(
    g,
    weight,
    top,
    left,
    stride,
    TERMS: tl.constexpr,
    IMAGE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
):
    """Return what each pixel of g in a square with border adds to each of its nine neighbours.

    Returns:
        float32 (pixels, COLUMNS): column 9·image channel + tap; further columns are 0.
    """
    BORDERED: tl.constexpr = SIDE + 2
    PIXELS: tl.constexpr = triton.next_power_of_2(BORDERED * BORDERED)
    pixel = tl.arange(0, PIXELS)
    row = top - 1 + pixel // BORDERED
    column = left - 1 + pixel % BORDERED
    exists = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    exists = exists & (pixel < BORDERED * BORDERED)
    output = tl.arange(0, COLUMNS)
    tap = output % 9
    image = output // 9
    used = image < IMAGE
    g_offset = ((row * WIDTH + column) * CHANNELS)[:, None]
    weight_rows = weight + ((tap * IMAGE + image) * CHANNELS)[:, None]
    total = tl.zeros((PIXELS, COLUMNS), tl.float32)
    # The product sums over terms as over further channels that have the same weights.
    for first in tl.range(0, TERMS * CHANNELS, K):
        # Triton 3.6 needs these hints: it does not derive that remainders are multiples.
        channel = tl.multiple_of(first % CHANNELS, K) + tl.arange(0, K)[None, :]
        term = g + tl.multiple_of(first // CHANNELS * stride, 32)
        a = tl.load(term + g_offset + channel, mask=exists[:, None], other=0.0)
        b = tl.load(weight_rows + channel, mask=used[:, None], other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def square(
    g,
    weight,
    batch,
    TERMS: tl.constexpr,
    IMAGE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
):
    """Return the gradient in this program's square of image pixels.

    Returns:
        The sample (int64), the gradient, the index of its elements within the sample (int32), and
        whether they exist; the last three are (groups, 4), a group being four pixels of a row.
    """
    ACROSS: tl.constexpr = (WIDTH + SIDE - 1) // SIDE
    SQUARES: tl.constexpr = ACROSS * ((HEIGHT + SIDE - 1) // SIDE)
    GROUPS: tl.constexpr = SIDE * SIDE // 4
    IMAGES: tl.constexpr = triton.next_power_of_2(IMAGE)
    sample = (tl.program_id(0) // SQUARES).to(tl.int64)
    top = tl.program_id(0) % SQUARES // ACROSS * SIDE
    left = tl.program_id(0) % ACROSS * SIDE
    AREA: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    g += sample * AREA
    sums = tap_sums(
        g, weight, top, left, batch * AREA, TERMS, IMAGE, HEIGHT, WIDTH, CHANNELS, SIDE, COLUMNS, K
    )
    # Pixel (y, x) of the square is (y + 1, x + 1) of the square with border, where tap (dy, dx) of
    # (y + 2 - dy, x + 2 - dx) contributes to it. Lanes are pixels, so each thread adds up its taps.
    pixel = tl.arange(0, SIDE * SIDE)
    output = tl.arange(0, COLUMNS)
    row = (pixel // SIDE)[None, :] + 2 - (output % 9 // 3)[:, None]
    column = (pixel % SIDE)[None, :] + 2 - (output % 3)[:, None]
    taps = tl.gather(tl.trans(sums), row * (SIDE + 2) + column, axis=1)
    same_image = (output // 9)[None, :] == tl.arange(0, IMAGES)[:, None]
    gradient = tl.sum(tl.where(same_image[:, :, None], taps[None, :, :], 0.0), axis=1)
    gradient = tl.reshape(gradient, (IMAGES * GROUPS, 4))

    group = tl.arange(0, IMAGES * GROUPS)
    image = group // GROUPS
    y = top + group % GROUPS // (SIDE // 4)
    x = left + group % (SIDE // 4) * 4
    element = ((image * HEIGHT + y) * WIDTH + x)[:, None] + tl.arange(0, 4)[None, :]
    exists = ((image < IMAGE) & (y < HEIGHT))[:, None]
    if WIDTH % 4 == 0:
        # From this the compiler sees that all four pixels of a group exist or none.
        inside = exists & (x < WIDTH)[:, None] & (tl.arange(0, 4) < 4)[None, :]
    else:
        inside = exists & (x[:, None] + tl.arange(0, 4)[None, :] < WIDTH)
    return sample, gradient, element, inside


@triton.jit(do_not_specialize=["batch"])
def cdrl_stem_gradient(
    out,
    g,
    weight,
    unscale: tl.float32,
    batch: tl.int64,
    TERMS: tl.constexpr,
    IMAGE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
):
    sample, gradient, element, inside = square(
        g, weight, batch, TERMS, IMAGE, HEIGHT, WIDTH, CHANNELS, SIDE, COLUMNS, K
    )
    offset = sample * (IMAGE * HEIGHT * WIDTH) + element
    tl.store(out + offset, unscale * gradient, mask=inside)


@triton.jit
def coefficient(value, IN_MEMORY: tl.constexpr):
    """Return a coefficient: the number ``value``, or the number it points to if IN_MEMORY."""
    if IN_MEMORY:
        return tl.load(value).to(tl.float32)
    else:
        return value


@triton.jit(do_not_specialize=["batch", "seed", "draw", "first_sample"])
def cdrl_stem_langevin(
    state,
    g,
    weight,
    anchor,
    table,
    drift,
    pull,
    noise_std,
    rescale,
    rng,
    first_bad,
    batch: tl.int64,
    seed: tl.int64,
    draw: tl.int64,
    first_sample: tl.int64,
    IN_MEMORY: tl.constexpr,
    TERMS: tl.constexpr,
    IMAGE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
):
    sample, gradient, element, inside = square(
        g, weight, batch, TERMS, IMAGE, HEIGHT, WIDTH, CHANNELS, SIDE, COLUMNS, K
    )
    offset = sample * (IMAGE * HEIGHT * WIDTH) + element
    x = tl.load(state + offset, mask=inside)
    if rng is not None:
        seed = tl.load(rng)
        draw = tl.load(rng + 1)
        first_sample = tl.load(rng + 2)
    if table is not None:
        drift = tl.load(table + sample)
        pull = tl.load(table + batch + sample)
        noise_std = tl.load(table + 2 * batch + sample)
        rescale = tl.load(table + 3 * batch + sample)
    y = x + coefficient(drift, IN_MEMORY & 1) * gradient
    if anchor is not None:
        y -= coefficient(pull, IN_MEMORY & 2) * (x - tl.load(anchor + offset, mask=inside))
    if WIDTH % 4 == 0:
        # A group of four pixels is one block of the stream.
        block = tl.min(element, axis=1) // 4
        samples = first_sample + sample + tl.zeros_like(block).to(tl.int64)
        z = noise(seed, draw, samples, block)
    else:
        samples = first_sample + sample + tl.zeros_like(element).to(tl.int64)
        z = element_noise(seed, draw, samples, element)
    y = coefficient(rescale, IN_MEMORY & 8) * (y + coefficient(noise_std, IN_MEMORY & 4) * z)
    tl.store(state + offset, y, mask=inside)
    if first_bad is not None:
        # y - y is 0 for finite y alone.
        bad = tl.sum(tl.sum(((y - y != 0.0) & inside).to(tl.int32), axis=1), axis=0) > 0
        tl.atomic_min(first_bad, (draw.to(tl.int64) << 31) + sample, mask=bad)
    if rng is not None:
        advance_rng(rng, draw + 1)


def _launch(kernel: Any, g: Tensor, weight: Tensor, terms: int, tensors: dict[str, Any]) -> Launch:
    batch, height, width, channels = g.shape
    batch //= terms
    image = weight.shape[1]
    squares = -(-height // SIDE) * -(-width // SIDE)
    columns = triton.next_power_of_2(9 * image)
    # With 64 columns, four warps or two stages spill registers.
    narrow = columns <= 32
    options = {**OPTIONS, "num_warps": 4 if narrow else 8, "num_stages": 2 if narrow else 1}
    if not narrow:
        options["maxnreg"] = 255  # without a limit ptxas spills, to fit more programs on an SM
    shape = {
        "batch": batch,
        "TERMS": terms,
        "IMAGE": image,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "SIDE": SIDE,
        "COLUMNS": columns,
        "K": _block_k(g.dtype, channels),
    }
    return Launch(kernel, batch * squares, {"g": g, "weight": weight, **tensors, **shape}, options)


def _block_k(dtype: torch.dtype, channels: int) -> int:
    """Return the channels per step of the product; float32 needs more registers per channel."""
    if dtype == torch.float32:
        return 16
    return 64 if channels % 64 == 0 else 32


def gradient_arguments(g: Tensor, weight: Tensor, terms: int, scale: float, out: Tensor) -> Launch:
    """Return the launch of `stem_gradient`."""
    return _launch(cdrl_stem_gradient, g, weight, terms, {"out": out, "unscale": 1.0 / scale})


def langevin_arguments(
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    terms: int,
    anchor: Tensor | None,
    coefficients: tuple[Coefficient, ...],
    rng: tuple[int, int, int] | Tensor,
    first_bad: Tensor | None,
) -> Launch:
    """Return the launch of `stem_langevin_`."""
    # The kernel reads tensors of one element, so that replays of a graph use their new values.
    per_sample = any(isinstance(c, Tensor) and c.numel() > 1 for c in coefficients)
    table = coefficient_table(coefficients, y) if per_sample else None
    scalars = (0.0,) * 4 if per_sample else tuple(_scalar(c, y) for c in coefficients)
    (seed, draw, first_sample), state = split_rng(rng)
    tensors = {
        "state": y,
        "anchor": anchor,
        "table": table,
        **dict(zip(COEFFICIENT_NAMES, scalars, strict=True)),
        "rng": state,
        "first_bad": first_bad,
        "seed": seed,
        "draw": draw,
        "first_sample": first_sample,
        "IN_MEMORY": sum(isinstance(c, Tensor) << i for i, c in enumerate(scalars)),
    }
    return _launch(cdrl_stem_langevin, g, weight, terms, tensors)


def _scalar(c: Coefficient, y: Tensor) -> Coefficient:
    """Return a coefficient of one element that is on y's device, others as a number."""
    return c if isinstance(c, Tensor) and c.device == y.device else float(c)


def stem_gradient(g: Tensor, *rest: Any) -> None:
    """Write ``out``; not for float64 or empty batches."""
    launch(gradient_arguments(g, *rest), g.device)


def stem_langevin_(y: Tensor, *rest: Any) -> None:
    """Write ``y``; not for float64 or empty batches."""
    launch(langevin_arguments(y, *rest), y.device)
