"""Which room and which blocks are fastest for a convolution: a table of what has been measured.

`scripts/tune_conv3x3.py` measures and writes it. Nothing is ever measured at a user's call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from cdrl_fast.ops.conv3x3.tiling import Blocks

FORMAT = 1
COMMITTED = Path(__file__).with_name("winners.json")
ROOMS = ("triton", "cudnn")


@dataclass(frozen=True, order=True)
class Kind:
    """What a winner holds for, apart from the number of pixels.

    Attributes:
        capability: 80, 90, …; of that very number.
        precision: "float16", "bfloat16", or of float32 "tf32" or "ieee".
        transposed: the input gradient.
        c_in, c_out: channels of the input and of the result.
    """

    capability: int
    precision: str
    transposed: bool
    c_in: int
    c_out: int


@dataclass(frozen=True)
class Winner:
    """The fastest room, and the fastest blocks for Triton's, whichever that is."""

    room: str
    blocks: Blocks


@dataclass(frozen=True)
class Table:
    """Winners by kind and number of pixels.

    Attributes:
        winners: by kind, the winner at each measured number of pixels, as its exponent of two.
        measured: by capability, where and with what: device, versions, date.
    """

    winners: Mapping[Kind, Mapping[int, Winner]]
    measured: Mapping[str, Mapping[str, Any]]

    def find(self, kind: Kind, pixels: int) -> Winner | None:
        """The winner at the nearest number of pixels, by ratio; None where none was measured."""
        known = self.winners.get(kind)
        if not known:
            return None
        wanted = exponent(pixels)
        return known[min(known, key=lambda e: (abs(e - wanted), e))]

    def merged(self, newer: Table) -> Table:
        """This table, with the newer one's winners over its own."""
        kinds = sorted({*self.winners, *newer.winners})
        both = {k: {**self.winners.get(k, {}), **newer.winners.get(k, {})} for k in kinds}
        return Table(both, {**self.measured, **newer.measured})

    def write(self, path: Path) -> None:
        """A line a winner, in order, so that a change can be read."""
        lines = []
        for kind in sorted(self.winners):
            for power, winner in sorted(self.winners[kind].items()):
                entry = {**asdict(kind), "pixels": 2**power, **asdict(winner)}
                lines.append(f"  {json.dumps(entry)}")
        entries = "[\n" + ",\n".join(lines) + "\n ]" if lines else "[]"
        measured = json.dumps(dict(sorted(self.measured.items())))
        path.write_text(
            f'{{\n "format": {FORMAT},\n "measured": {measured},\n "winners": {entries}\n}}\n'
        )

    @classmethod
    def read(cls, path: Path) -> Table:
        """Raises ValueError, naming the file and the entry, where it is not such a table."""
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {data.get('format')!r}")
        found: dict[Kind, dict[int, Winner]] = {}
        for entry in data["winners"]:
            try:
                kind, power, winner = _entry(dict(entry))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: {entry}: {error}") from error
            found.setdefault(kind, {})[power] = winner
        return cls(found, data["measured"])


def exponent(pixels: int) -> int:
    """Of the power of two that is nearest, by ratio."""
    return round(math.log2(pixels))


def _entry(values: dict[str, Any]) -> tuple[Kind, int, Winner]:
    kind = Kind(**{f.name: values.pop(f.name) for f in fields(Kind)})
    pixels, room, blocks = (values.pop(name) for name in ("pixels", "room", "blocks"))
    blocks = Blocks(**blocks)
    if values:
        raise ValueError(f"unknown {sorted(values)}")
    if room not in ROOMS:
        raise ValueError(f"room must be one of {ROOMS}")
    if pixels != 2 ** exponent(pixels):
        raise ValueError("pixels must be a power of two")
    for size in (blocks.block_m, blocks.block_n, blocks.block_k, blocks.warps):
        if size < 1 or size & (size - 1):
            raise ValueError("blocks and warps must be powers of two")
    if kind.c_out % blocks.block_n or kind.c_in % blocks.block_k or blocks.block_n % 32:
        raise ValueError("blocks must divide the channels, and words of 32 those of the result")
    return kind, exponent(pixels), Winner(room, blocks)


@cache
def committed() -> Table:
    """The table that comes with the library."""
    return Table.read(COMMITTED)
