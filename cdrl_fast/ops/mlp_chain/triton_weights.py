"""What the Triton room needs besides a call's tensors: weights, the table, memory to work in."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from cdrl_fast.ops.mlp_chain.cache import Plans
from cdrl_fast.ops.mlp_chain.lowering import Piece, Schedule, schedule, shape_of
from cdrl_fast.ops.mlp_chain.program import Linear, Program

SAMPLES = 32
"""Samples of a block, which one program of the kernel takes through all steps."""
PROGRAMS_A_PROCESSOR = 2
"""At most so many programs are started for each of a GPU's processors; more blocks wait in turn."""
HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Packed:
    """A program's weights as the kernel reads them.

    Attributes:
        schedule: the operations.
        table: int32, a row an operation.
        singles, halves: the buffers of weights; halves is None in float32.
    """

    def __init__(self, program: Program, precision: str, value: bool) -> None:
        half = HALVES[precision]
        self.schedule: Schedule = schedule(shape_of(program), half is not None, value)
        device = program.head.device
        self.table = _table(self.schedule, device)
        elements, singles = self.schedule.sizes
        self.singles = torch.zeros(singles, device=device, dtype=torch.float32)
        self.halves = None
        if half is not None:
            # Never empty: a kernel needs an address.
            self.halves = torch.zeros(max(elements, 1), device=device, dtype=half)
        self.load(program)

    @torch.no_grad()
    def load(self, program: Program) -> None:
        """Takes the program's numbers, in place; padding stays 0."""
        for piece in self.schedule.pieces:
            buffer = self.singles if piece.single else self.halves
            assert buffer is not None
            to = buffer[piece.begin :][: math.prod(piece.shape)].view(piece.shape)
            numbers = _numbers(program, piece)
            if isinstance(numbers, float):
                to[0] = numbers
            else:
                to[tuple(slice(n) for n in numbers.shape)] = numbers

    def slots(self, programs: int) -> Tensor:
        """Memory for so many programs of the kernel; left as it comes."""
        words = programs * self.schedule.workspace * SAMPLES
        return torch.empty(words, device=self.singles.device, dtype=torch.float32)


_PACKED: Plans[Packed] = Plans()


def packed(program: Program, precision: str, value: bool) -> Packed:
    """The program's weights packed: made once, and again if they change."""
    return _PACKED.get(program, (precision, value), lambda: Packed(program, precision, value))


def programs(batch: int, device: torch.device) -> int:
    """How many programs of the kernel work on a batch."""
    return min(-(-batch // SAMPLES), PROGRAMS_A_PROCESSOR * _processors(device))


@lru_cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=256)
def _table(schedule: Schedule, device: torch.device) -> Tensor:
    return torch.tensor(schedule.table, dtype=torch.int32, device=device)


def _numbers(program: Program, piece: Piece) -> Tensor | float:
    if piece.form == "constant":
        return program.constant
    if piece.form == "head":
        return program.head.detach()
    if piece.form == "column":
        return program.head.detach()[:, None]
    step = program.instructions[piece.step]
    assert isinstance(step, Linear)
    if piece.form == "bias":
        assert isinstance(step.bias, Tensor)
        return step.bias.detach()
    return step.weight.detach().mT if piece.form == "forward" else step.weight.detach()
