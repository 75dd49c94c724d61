"""`stem_gradient` and `stem_langevin_` in Triton.

A transposed convolution to so few channels is turned around: one matrix product gives, for each
pixel of g, what it adds to each of its nine neighbours; then each image pixel gathers its nine
parts. So g is read once but for the border of a tile, and the product has no idle columns to speak
of.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdrl_fast.ops.coefficients import COEFFICIENT_NAMES, Coefficient, coefficient_table
from cdrl_fast.ops.triton_common import OPTIONS, Launch, advance_rng, element_noise, launch, noise

SIDE = 8
"""Of the square of image pixels that one program takes."""


@triton.jit
def parts(
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
    """What the pixels of g in a square and its border add to their neighbours.

    Returns:
        float32 (pixels, COLUMNS): column 9·image channel + tap; the rest are 0.
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
    place = ((row * WIDTH + column) * CHANNELS)[:, None]
    from_weight = weight + ((tap * IMAGE + image) * CHANNELS)[:, None]
    total = tl.zeros((PIXELS, COLUMNS), tl.float32)
    # Terms are summed by the product, as further channels with the same weights would be.
    for first in tl.range(0, TERMS * CHANNELS, K):
        # Said to triton 3.6, which does not see what a remainder is a multiple of.
        channel = tl.multiple_of(first % CHANNELS, K) + tl.arange(0, K)[None, :]
        from_g = g + tl.multiple_of(first // CHANNELS * stride, 32)
        a = tl.load(from_g + place + channel, mask=exists[:, None], other=0.0)
        b = tl.load(from_weight + channel, mask=used[:, None], other=0.0)
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
    """The gradient of a program's square of image pixels.

    Returns:
        Gradient, its elements' number within the sample (int32) and whether they exist, each
        (groups, 4); groups are of pixels side by side.
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
    given = parts(
        g, weight, top, left, batch * AREA, TERMS, IMAGE, HEIGHT, WIDTH, CHANNELS, SIDE, COLUMNS, K
    )
    # Pixel (y, x) of the square is (y + 1, x + 1) of what has a border, and tap (dy, dx) brings it
    # the part of (y + 2 - dy, x + 2 - dx).
    # Pixels lie along the lanes, and each thread adds up its taps.
    pixel = tl.arange(0, SIDE * SIDE)
    output = tl.arange(0, COLUMNS)
    row = (pixel // SIDE)[None, :] + 2 - (output % 9 // 3)[:, None]
    column = (pixel % SIDE)[None, :] + 2 - (output % 3)[:, None]
    mine = tl.gather(tl.trans(given), row * (SIDE + 2) + column, axis=1)
    its = (output // 9)[None, :] == tl.arange(0, IMAGES)[:, None]
    gradient = tl.sum(tl.where(its[:, :, None], mine[None, :, :], 0.0), axis=1)
    gradient = tl.reshape(gradient, (IMAGES * GROUPS, 4))

    group = tl.arange(0, IMAGES * GROUPS)
    image = group // GROUPS
    y = top + group % GROUPS // (SIDE // 4)
    x = left + group % (SIDE // 4) * 4
    element = ((image * HEIGHT + y) * WIDTH + x)[:, None] + tl.arange(0, 4)[None, :]
    exists = ((image < IMAGE) & (y < HEIGHT))[:, None]
    if WIDTH % 4 == 0:
        # Plain to the compiler: a group exists whole or not at all.
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
    at = sample * (IMAGE * HEIGHT * WIDTH) + element
    tl.store(out + at, unscale * gradient, mask=inside)


@triton.jit
def number(value, READ: tl.constexpr):
    """A number, or where it is to be read a tensor's only element."""
    if READ:
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
    READ: tl.constexpr,
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
    at = sample * (IMAGE * HEIGHT * WIDTH) + element
    x = tl.load(state + at, mask=inside)
    if rng is not None:
        seed = tl.load(rng)
        draw = tl.load(rng + 1)
        first_sample = tl.load(rng + 2)
    if table is not None:
        drift = tl.load(table + sample)
        pull = tl.load(table + batch + sample)
        noise_std = tl.load(table + 2 * batch + sample)
        rescale = tl.load(table + 3 * batch + sample)
    y = x + number(drift, READ & 1) * gradient
    if anchor is not None:
        y -= number(pull, READ & 2) * (x - tl.load(anchor + at, mask=inside))
    if WIDTH % 4 == 0:
        # A group of four pixels is one block of the stream.
        block = tl.min(element, axis=1) // 4
        samples = first_sample + sample + tl.zeros_like(block).to(tl.int64)
        z = noise(seed, draw, samples, block)
    else:
        samples = first_sample + sample + tl.zeros_like(element).to(tl.int64)
        z = element_noise(seed, draw, samples, element)
    y = number(rescale, READ & 8) * (y + number(noise_std, READ & 4) * z)
    tl.store(state + at, y, mask=inside)
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
    # 64 columns in four warps, or in two stages, spill registers.
    few = columns <= 32
    options = {**OPTIONS, "num_warps": 4 if few else 8, "num_stages": 2 if few else 1}
    if not few:
        options["maxnreg"] = 255  # without a limit ptxas spills, to fit more programs
    shape = {
        "batch": batch,
        "TERMS": terms,
        "IMAGE": image,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "SIDE": SIDE,
        "COLUMNS": columns,
        "K": _step(g.dtype, channels),
    }
    return Launch(kernel, batch * squares, {"g": g, "weight": weight, **tensors, **shape}, options)


def _step(dtype: torch.dtype, channels: int) -> int:
    """Channels that the product takes at a time; float32 products take more registers."""
    if dtype == torch.float32:
        return 16
    return 64 if channels % 64 == 0 else 32


def gradient_arguments(g: Tensor, weight: Tensor, terms: int, scale: float, out: Tensor) -> Launch:
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
    # A tensor of one element is read where it lies, so that a graph's replays see it changed.
    each = any(isinstance(c, Tensor) and c.numel() > 1 for c in coefficients)
    table = coefficient_table(coefficients, y) if each else None
    numbers = (0.0,) * 4 if each else tuple(_readable(c, y) for c in coefficients)
    seed, draw, first_sample = (0, 0, 0) if isinstance(rng, Tensor) else rng
    tensors = {
        "state": y,
        "anchor": anchor,
        "table": table,
        **dict(zip(COEFFICIENT_NAMES, numbers, strict=True)),
        "rng": rng if isinstance(rng, Tensor) else None,
        "first_bad": first_bad,
        "seed": seed,
        "draw": draw,
        "first_sample": first_sample,
        "READ": sum(isinstance(c, Tensor) << i for i, c in enumerate(numbers)),
    }
    return _launch(cdrl_stem_langevin, g, weight, terms, tensors)


def _readable(c: Coefficient, y: Tensor) -> Coefficient:
    """As a kernel on y's device can read it."""
    return c if isinstance(c, Tensor) and c.device == y.device else float(c)


def stem_gradient(g: Tensor, *rest: Any) -> None:
    """Writes ``out``; not float64 and not empty."""
    launch(gradient_arguments(g, *rest), g.device)


def stem_langevin_(y: Tensor, *rest: Any) -> None:
    """Writes ``y``; float32 and not empty."""
    launch(langevin_arguments(y, *rest), y.device)
