"""`mlp_chain` in C++ (csrc/cpu/mlp/)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.mlp_chain.cache import ProgramCache
from cdrl_fast.ops.mlp_chain.program import KINDS, Linear, Program

PRECISIONS = ("fp32", "bf16")

_COMPILED: ProgramCache[Any] = ProgramCache()


def chain(
    program: Program,
    precision: str,
    y: Tensor,
    anchor: Tensor | None,
    rows: Tensor | None,
    steps: int,
    table: Tensor | None,
    coefficients: tuple[float, float, float, float],
    position: tuple[int, int, int],
    first_bad: Tensor | None,
) -> None:
    """Run a chain and write ``y``. All tensors are float32 and dense, none shares y's memory."""
    compiled_energy(program, precision).chain(
        y.data_ptr(),
        0 if anchor is None else anchor.data_ptr(),
        y.shape[0],
        steps,
        0 if table is None else table.data_ptr(),
        *coefficients,
        *_rows(rows),
        *position,
        0 if first_bad is None else first_bad.data_ptr(),
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version(y)


def value_and_gradient(
    program: Program, precision: str, y: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return value and gradient as the reference does; tensors float32 and dense."""
    value, gradient = y.new_empty(y.shape[0]), torch.empty_like(y)
    compiled_energy(program, precision).gradient(
        y.data_ptr(),
        y.shape[0],
        *_rows(rows),
        value.data_ptr(),
        gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return value, gradient


def compiled_energy(program: Program, precision: str) -> Any:
    """Return the C++ object of a float32 program, cached until weights change."""
    return _COMPILED.get(program, precision, lambda: _compile_energy(program, precision))


def _compile_energy(program: Program, precision: str) -> Any:
    compiled = module()
    shapes: list[tuple[int, int, int, float, bool, int]] = []
    weights: list[int] = []
    biases: list[int] = []
    dense: list[Tensor] = []  # alive until C++ has packed them

    def address(tensor: Tensor | slice | None) -> int:
        if not isinstance(tensor, Tensor):
            return 0
        dense.append(tensor.detach().contiguous())
        return dense[-1].data_ptr()

    for step in program.instructions:
        if isinstance(step, Linear):
            row = step.bias.start if isinstance(step.bias, slice) else -1
            kind, slope = KINDS.index(step.activation.kind), step.activation.slope
            shapes.append((step.source, step.target, kind, slope, True, row))
            weights.append(address(step.weight))
            biases.append(address(step.bias))
        else:
            shapes.append((step.source, step.target, 0, 0.0, False, -1))
            weights.append(0)
            biases.append(0)
    last, half = program.activation, precision == "bf16"
    kind = KINDS.index(last.kind)
    return compiled.MlpEnergy(
        list(program.widths), shapes, kind, last.slope, half, weights, biases,
        address(program.head), program.constant,
    )  # fmt: skip


def _rows(rows: Tensor | None) -> tuple[int, int]:
    """Return the rows' address and the stride from one sample's row to the next."""
    if rows is None:
        return 0, 0
    return rows.data_ptr(), rows.shape[1] if rows.shape[0] > 1 else 0
