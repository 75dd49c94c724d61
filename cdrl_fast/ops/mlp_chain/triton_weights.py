"""Weights, table of operations and memory of the Triton kernel."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from cdrl_fast.ops.mlp_chain.cache import ProgramCache
from cdrl_fast.ops.mlp_chain.lowering import BufferEntry, Schedule, program_shape, schedule
from cdrl_fast.ops.mlp_chain.program import Linear, Program

SAMPLES = 32
"""Samples per block; one program of the kernel takes a block through all steps."""
PROGRAMS_PER_MULTIPROCESSOR = 2
"""Upper bound of the programs started per multiprocessor; further blocks wait in turn."""
HALF_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of half-precision products by precision."""


class PackedWeights:
    """A program's weights in the layout that the kernel reads.

    Attributes:
        schedule: the operations.
        table: int32, one row per operation.
        weights_fp32, weights_half: the buffers of weights; the second is None in float32.
    """

    def __init__(self, program: Program, precision: str, value: bool) -> None:
        half = HALF_DTYPES[precision]
        self.schedule: Schedule = schedule(program_shape(program), half is not None, value)
        device = program.head.device
        self.table = _table(self.schedule, device)
        half_elements, fp32_elements = self.schedule.buffer_sizes
        self.weights_fp32 = torch.zeros(fp32_elements, device=device, dtype=torch.float32)
        self.weights_half = None
        if half is not None:
            # Never empty: a kernel needs an address.
            self.weights_half = torch.zeros(max(half_elements, 1), device=device, dtype=half)
        self.load(program)

    @torch.no_grad()
    def load(self, program: Program) -> None:
        """Copy the program's weights into the buffers; padding stays 0."""
        for entry in self.schedule.entries:
            buffer = self.weights_fp32 if entry.fp32 else self.weights_half
            assert buffer is not None
            target = buffer[entry.offset :][: math.prod(entry.shape)].view(entry.shape)
            source = _source(program, entry)
            if isinstance(source, float):
                target[0] = source
            else:
                target[tuple(slice(n) for n in source.shape)] = source

    def slots(self, programs: int) -> Tensor:
        """Return uninitialized memory for the slots of this number of programs."""
        size = programs * self.schedule.workspace * SAMPLES
        return torch.empty(size, device=self.weights_fp32.device, dtype=torch.float32)


_PACKED: ProgramCache[PackedWeights] = ProgramCache()


def packed_weights(program: Program, precision: str, value: bool) -> PackedWeights:
    """Return the program's packed weights, cached until weights change."""
    return _PACKED.get(
        program, (precision, value), lambda: PackedWeights(program, precision, value)
    )


def program_count(batch: int, device: torch.device) -> int:
    """Return the number of programs of the kernel for a batch."""
    return min(-(-batch // SAMPLES), PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device))


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=256)
def _table(schedule: Schedule, device: torch.device) -> Tensor:
    return torch.tensor(schedule.table, dtype=torch.int32, device=device)


def _source(program: Program, entry: BufferEntry) -> Tensor | float:
    """Return the program's tensor that fills a buffer entry, without padding."""
    if entry.form == "constant":
        return program.constant
    if entry.form == "head":
        return program.head.detach()
    if entry.form == "column":
        return program.head.detach()[:, None]
    linear = program.instructions[entry.instruction]
    assert isinstance(linear, Linear)
    if entry.form == "bias":
        assert isinstance(linear.bias, Tensor)
        return linear.bias.detach()
    return linear.weight.detach().mT if entry.form == "forward" else linear.weight.detach()
