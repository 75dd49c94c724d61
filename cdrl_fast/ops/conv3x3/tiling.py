"""How a convolution is cut into programs: a function of its shape and of the architecture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cache

import torch

from cdrl_fast.ops.dispatch import compute_capability

INTERPRETED = 90
"""The capability whose kernels the interpreter runs."""
FULL = 128
"""Programs that fill a large GPU; where there are fewer, tiles get smaller."""


@dataclass(frozen=True)
class Blocks:
    """Sizes and options of a launch, whatever the image.

    Attributes:
        block_m: pixels of a program, a power of two.
        block_n, block_k: output channels of a program, and input channels of one step of its sum;
            powers of two that divide the channels.
        tma: input blocks come by the tensor memory accelerator.
    """

    block_m: int
    block_n: int
    block_k: int
    tma: bool
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling(Blocks):
    """Tile and options of one launch.

    Attributes:
        box: samples, rows and columns of a program's block of pixels; a power of two each. Without
            ``tma`` only their product counts.
    """

    box: tuple[int, int, int]

    @property
    def blocks(self) -> Blocks:
        """What of it does not depend on the image."""
        return Blocks(**{f.name: getattr(self, f.name) for f in fields(Blocks)})

    def programs(self, batch: int, height: int, width: int, channels: int) -> int:
        """How many it takes."""
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
    """The tiling for an input (batch, height, width, channels) and that many output channels.

    Args:
        half: two bytes a value, else float32.
        exact: float32 products by fused multiply-add, without tensor cores.
        capability: 80, 90, …
        aligned: arrays begin on 16-byte boundaries, as TMA needs.
        blocks: those to take, where TMA can bring what they want it to; by default what the shape
            suggests.
    """
    if blocks is not None:
        chosen = _fitted(shape, blocks, capability, aligned)
        if chosen.tma == blocks.tma:
            return chosen
    batch, height, width, c_in = shape
    pixels = batch * height * width
    # The step depends on channels and type alone, so that the order of a sum does.
    block_k = 16 if exact else 64 if half and c_in % 64 == 0 else 32
    block_n = next(n for n in (128, 64, 32) if channels % n == 0)
    block_m = 128
    if exact:
        # The sums of a multiply-add kernel share registers with its operands.
        block_m, block_n = 64, min(block_n, 64)
    if _programs(pixels, block_m, channels, block_n) < FULL:
        block_m = 64
    if _programs(pixels, block_m, channels, block_n) < FULL:
        block_n = min(block_n, 64)
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    made = _fitted(shape, Blocks(block_m, block_n, block_k, True, warps, 3), capability, aligned)
    # Shared memory for two programs an SM on 80 (one, by its registers), 90 and 100: while one is
    # at its epilogue, the other's products go on.
    more = not exact and (capability < 90 or (capability < 100 and made.tma))
    return replace(made, stages=4 if more else 3)


def _fitted(
    shape: tuple[int, int, int, int], blocks: Blocks, capability: int, aligned: bool
) -> Tiling:
    """The blocks with a box for the image; without TMA where it cannot, or would waste much."""
    batch, height, width, _ = shape
    box = _box(height, width, blocks.block_m)
    padded = -(-batch // box[0]) * box[0]
    tma = blocks.tma and capability >= 90 and aligned and 8 * batch >= 7 * padded
    return Tiling(**{**asdict(blocks), "tma": tma}, box=box)


def _programs(pixels: int, block_m: int, channels: int, block_n: int) -> int:
    return -(-pixels // block_m) * (channels // block_n)


def _box(height: int, width: int, block_m: int) -> tuple[int, int, int]:
    """Samples, rows, columns: as wide and high as tiles the image, then as many samples."""
    columns = min(width & -width, block_m)
    rows = min(height & -height, block_m // columns)
    return block_m // (columns * rows), rows, columns


@cache
def capability_of(device: torch.device) -> int:
    """Whose kernels a device gets."""
    return compute_capability(device) if device.type == "cuda" else INTERPRETED
