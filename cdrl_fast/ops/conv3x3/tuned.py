"""Table of the fastest backend and blocks of convolutions, which `make gpu-tune` writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cdrl_fast.ops.conv3x3.tiling import Blocks

TABLE = Path(__file__).with_name("tuned.json")
SHAPE = ("capability", "precision", "transposed", "c_in", "c_out")
"""Fields of an entry that must match; its number of pixels need only be the nearest."""


@dataclass(frozen=True)
class Tuned:
    """The faster backend, "triton" or "cudnn", and the fastest blocks of the Triton kernel."""

    backend: str
    blocks: Blocks


def find(
    capability: int, precision: str, transposed: bool, c_in: int, c_out: int, pixels: int
) -> Tuned | None:
    """Return the entry of a convolution whose number of pixels is nearest, by ratio.

    Args:
        capability: compute capability of the GPU: 80, 90, …
        precision: "float16", "bfloat16", or for float32 "tf32" or "ieee".
        transposed: whether the convolution is an input gradient.
        c_in, c_out: channels of the input and of the result.
        pixels: batch · height · width.

    Returns:
        The entry, or None if no such convolution has been timed.
    """
    timed = read(TABLE).get((capability, precision, transposed, c_in, c_out))
    if timed is None:
        return None
    return timed[min(timed, key=lambda p: (abs(math.log2(p) - math.log2(pixels)), p))]


@cache
def read(path: Path) -> dict[tuple[object, ...], dict[int, Tuned]]:
    """Return the entries of a table by `SHAPE`, then by number of pixels."""
    table: dict[tuple[object, ...], dict[int, Tuned]] = {}
    for entry in json.loads(path.read_text())["convolutions"]:
        timed = table.setdefault(tuple(entry[name] for name in SHAPE), {})
        timed[entry["pixels"]] = Tuned(entry["backend"], Blocks(**entry["blocks"]))
    return table
