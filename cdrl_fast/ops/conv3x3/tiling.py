"""Tiles of a convolution's programs, as a function of shape, dtype and compute capability."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cache

import torch

from cdrl_fast.ops.dispatch import compute_capability

INTERPRETED = 90
"""Compute capability whose kernels run in Triton's interpreter."""
MIN_PROGRAMS = 128
"""Programs that occupy a large GPU; if there would be fewer, tiles are smaller."""


@dataclass(frozen=True)
class Blocks:
    """Block sizes and options of a launch, which do not depend on the image.

    Attributes:
        block_m: pixels per program, a power of two.
        block_n: output channels per program, a power of two that divides the output channels.
        block_k: input channels per step of the sum, a power of two that divides the input channels.
        tma: whether the tensor memory accelerator loads input and weights.
        warps: warps per program.
        stages: stages of the software pipeline.
    """

    block_m: int
    block_n: int
    block_k: int
    tma: bool
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling(Blocks):
    """Blocks and options of one launch for images of a certain size.

    Attributes:
        box: samples, rows and columns of a program's block of pixels; powers of two. Without
            ``tma`` only their product matters.
    """

    box: tuple[int, int, int]

    @property
    def blocks(self) -> Blocks:
        """The part that does not depend on the image."""
        return Blocks(**{f.name: getattr(self, f.name) for f in fields(Blocks)})

    def programs(self, batch: int, height: int, width: int, channels: int) -> int:
        """Return the number of programs for a result (batch, height, width, channels)."""
        samples, rows, columns = self.box
        if self.tma:
            blocks = -(-batch // samples) * (height // rows) * (width // columns)
        else:
            blocks = -(-batch * height * width // self.block_m)
        return blocks * (channels // self.block_n)


@cache
def tiling(
    shape: tuple[int, int, int, int],
    channels: int,
    *,
    half: bool,
    exact: bool,
    capability: int,
    aligned: bool,
    blocks: Blocks | None = None,
) -> Tiling:
    """Return the tiling of one convolution.

    Args:
        shape: (batch, height, width, channels) of the input.
        channels: number of output channels.
        half: whether the dtype has two bytes, else it is float32.
        exact: float32 with precision "ieee": fused multiply-add, no tensor cores.
        capability: compute capability: 80, 90, …
        aligned: whether input and weights begin on 16-byte boundaries, which TMA needs.
        blocks: blocks to use, unless they need TMA and it cannot load the input; by default they
            depend on the shape.
    """
    if blocks is not None:
        chosen = _fitted(shape, blocks, capability, aligned)
        if chosen.tma == blocks.tma:
            return chosen
    batch, height, width, c_in = shape
    pixels = batch * height * width
    # Depends on channels and dtype alone, so that the order of a sum depends on nothing else.
    block_k = 16 if exact else 64 if half and c_in % 64 == 0 else 32
    block_n = next(n for n in (128, 64, 32) if channels % n == 0)
    block_m = 128
    if exact:
        # Without tensor cores, sums and operands share the registers.
        block_m, block_n = 64, min(block_n, 64)
    if _programs(pixels, block_m, channels, block_n) < MIN_PROGRAMS:
        block_m = 64
    if _programs(pixels, block_m, channels, block_n) < MIN_PROGRAMS:
        block_n = min(block_n, 64)
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    tile = _fitted(shape, Blocks(block_m, block_n, block_k, True, warps, 3), capability, aligned)
    # The number of stages leaves shared memory for two programs per SM on 90 and 100, so that one
    # multiplies during the other's epilogue; on 80 registers allow only one program.
    four_stages = not exact and (capability < 90 or (capability < 100 and tile.tma))
    return replace(tile, stages=4 if four_stages else 3)


def _fitted(
    shape: tuple[int, int, int, int], blocks: Blocks, capability: int, aligned: bool
) -> Tiling:
    """Return the blocks with a box for the image; no TMA if unavailable or over 1/8 is padding."""
    batch, height, width, _ = shape
    box = _box(height, width, blocks.block_m)
    padded = -(-batch // box[0]) * box[0]
    tma = blocks.tma and capability >= 90 and aligned and 8 * batch >= 7 * padded
    return Tiling(**{**asdict(blocks), "tma": tma}, box=box)


def _programs(pixels: int, block_m: int, channels: int, block_n: int) -> int:
    return -(-pixels // block_m) * (channels // block_n)


def _box(height: int, width: int, block_m: int) -> tuple[int, int, int]:
    """Return samples, rows and columns of a box: as wide, then as high as divides the image."""
    columns = min(width & -width, block_m)
    rows = min(height & -height, block_m // columns)
    return block_m // (columns * rows), rows, columns


@cache
def capability_of(device: torch.device) -> int:
    """Return the compute capability whose kernels run on ``device``."""
    return compute_capability(device) if device.type == "cuda" else INTERPRETED
