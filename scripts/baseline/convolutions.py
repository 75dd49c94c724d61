"""cuDNN's 3×3 convolutions, one shape at a time, forward and input gradient.

The energy network has six distinct convolution shapes (channels in, channels out, image size). An
input gradient is a convolution from out to in, so as products of distinct (in, out, size) they are
eight: the square ones coincide with their own gradients, the stem and the widening one do not.
Both directions of all six are measured, since the library picks its kernels for each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from baseline.bench import Bench, Figure
from baseline.timing import DTYPES, measure, numerics

Shape = tuple[int, int, int]
KINDS = ("fp16", "bf16", "tf32")
DIRECTIONS = ("forward", "input gradient")
MOST_SETS = 64


def shapes(
    size: int,
    image_channels: int = 3,
    width: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 8,
) -> Counter[Shape]:
    """How often `ResNetEnergy` applies each (channels in, channels out, image size)."""
    counts: Counter[Shape] = Counter({(image_channels, width, size): 1})
    channels = width
    for index, multiplier in enumerate(multipliers):
        here, out = size // 2**index, multiplier * width
        for _ in range(blocks):
            # A block that changes the width applies the first shape twice: it has a shortcut too.
            counts[channels, out, here] += 1 + (channels != out)
            counts[out, out, here] += 1
            channels = out
    return counts


def distinct_products(counts: Counter[Shape]) -> set[Shape]:
    """The shapes together with those of their input gradients."""
    return set(counts) | {(c_out, c_in, size) for c_in, c_out, size in counts}


def flops(shape: Shape, batch: int) -> int:
    c_in, c_out, size = shape
    return 2 * 9 * c_in * c_out * size**2 * batch


def convolutions(bench: Bench) -> None:
    """Every shape, direction, precision and batch, and their sum over one gradient."""
    counts = shapes(bench.plan.image_size, **bench.plan.energy)
    for batch in bench.plan.convolution_batches:
        for kind in KINDS:
            # Errors do not depend on the batch, and the float64 check is slow on a host.
            check = batch == bench.plan.convolution_batches[0]
            found = {
                (shape, direction): bench.item(
                    f"{kind} batch {batch} {shape[0]}->{shape[1]} @{shape[2]} {direction}",
                    partial(_convolution, bench, kind, batch, shape, direction, check),
                )
                for shape in counts
                for direction in DIRECTIONS
            }
            if all(found.values()):
                bench.item(f"{kind} batch {batch} sum", partial(_sum, bench, kind, counts, found))


def _sum(
    bench: Bench,
    kind: str,
    counts: Counter[Shape],
    found: dict[tuple[Shape, str], Figure],
) -> Figure:
    """All convolutions of one value and input gradient, nothing between them counted."""
    seconds = sum(counts[shape] * figure["seconds"] for (shape, _), figure in found.items())
    work = sum(counts[shape] * figure["flops"] for (shape, _), figure in found.items())
    share = bench.share(kind, work, seconds)
    return {"seconds": seconds, "summed": "count in the network times median", **share}


def _convolution(
    bench: Bench, kind: str, batch: int, shape: Shape, direction: str, check: bool
) -> Figure:
    dtype, device = DTYPES[kind], bench.device
    c_in, c_out, size = shape
    itemsize = torch.empty(0, dtype=dtype).element_size()
    weight_bytes = 9 * c_in * c_out * itemsize
    moved = (c_in + c_out) * size**2 * batch * itemsize + weight_bytes
    given = c_in if direction == "forward" else c_out
    set_bytes = given * size**2 * batch * itemsize + weight_bytes
    sets = max(1, min(MOST_SETS, math.ceil(2 * bench.l2_bytes / set_bytes)))

    def random(*dims: int) -> Tensor:
        made = torch.randn(*dims, device=device, dtype=dtype)
        return made.to(memory_format=torch.channels_last)

    data = [random(batch, given, size, size) for _ in range(sets)]
    weights = [random(c_out, c_in, 3, 3) for _ in range(sets)]
    like = random(batch, c_in, size, size)
    call = forward if direction == "forward" else partial(input_gradient, like)
    with numerics("tf32"):
        timing = measure(
            lambda i: call(data[i % sets], weights[i % sets]),
            device,
            seconds=bench.plan.convolution_seconds,
            rounds=sets,
        )
        error = _error(call, data[0], weights[0], like) if check else None
    work = flops(shape, batch)
    share = bench.share(kind, work, timing.seconds)
    floor = None
    if bench.copy_rate and kind in bench.rates:
        floor = max(work / bench.rates[kind], moved / bench.copy_rate) / timing.seconds
    return timing.figure(
        **share, bytes=moved, share_of_floor=floor, buffer_sets=sets, relative_error=error
    )


def forward(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def input_gradient(like: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the input alone; ``like`` has the input's shape, its values are not read."""
    result: Tensor = torch.ops.aten.convolution_backward(
        gradient, like, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]
    return result


def _error(
    call: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, like: Tensor
) -> float:
    """Relative error on the first image against float64 on the host."""
    result = call(x, weight)[:1].double().cpu()
    x, weight = x[:1].double().cpu(), weight.double().cpu()
    # The gradient of a 3×3 convolution is one with swapped channels and turned taps.
    turned = weight.transpose(0, 1).flip(2, 3)
    exact = F.conv2d(x, weight if call is forward else turned, padding=1)
    error = float((result - exact).norm() / exact.norm())
    if not error < 0.02:
        raise AssertionError(f"relative error {error:.2e}")
    return error
