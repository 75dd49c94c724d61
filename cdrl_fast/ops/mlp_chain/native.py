"""`mlp_chain` in C++ (csrc/cpu/mlp/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdrl_fast._extension import address, module
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
    coefficients: tuple[float, ...],
    position: Sequence[int],
    first_bad: Tensor | None,
) -> None:
    """Run a chain and write ``y``. All tensors are float32 and dense, none shares y's memory."""
    drift, pull, noise_std, rescale = coefficients
    seed, draw, first_sample = position
    call = module().MlpCall(
        y=y.data_ptr(),
        anchor=address(anchor),
        table=address(table),
        rows=address(rows),
        rows_stride=_stride(rows),
        batch=y.shape[0],
        steps=steps,
        seed=seed,
        draw=draw,
        first_sample=first_sample,
        drift=drift,
        pull=pull,
        noise_std=noise_std,
        rescale=rescale,
    )
    compiled_energy(program, precision).run(
        call, first_bad=address(first_bad), threads=torch.get_num_threads()
    )
    torch.autograd.graph.increment_version(y)


def value_and_gradient(
    program: Program, precision: str, y: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return value and gradient as the reference does; tensors float32 and dense."""
    value, gradient = y.new_empty(y.shape[0]), torch.empty_like(y)
    call = module().MlpCall(
        y=y.data_ptr(),
        rows=address(rows),
        rows_stride=_stride(rows),
        value=value.data_ptr(),
        gradient=gradient.data_ptr(),
        batch=y.shape[0],
    )
    compiled_energy(program, precision).run(call, threads=torch.get_num_threads())
    return value, gradient


def compiled_energy(program: Program, precision: str) -> Any:
    """Return the C++ object of a float32 program, cached until weights change."""
    return _COMPILED.get(program, precision, lambda: _compile_energy(program, precision))


def _compile_energy(program: Program, precision: str) -> Any:
    compiled = module()
    shapes: list[Any] = []
    weights: list[int] = []
    biases: list[int] = []
    dense: list[Tensor] = []  # alive until C++ has packed them

    def add(tensor: Tensor | slice | None) -> int:
        if not isinstance(tensor, Tensor):
            return 0
        dense.append(tensor.detach().contiguous())
        return dense[-1].data_ptr()

    for step in program.instructions:
        shape = compiled.MlpShape(source=step.source, target=step.target, row=-1)
        if isinstance(step, Linear):
            shape.linear, shape.leak = True, step.activation.slope
            shape.activation = KINDS.index(step.activation.kind)
            if isinstance(step.bias, slice):
                shape.row = step.bias.start
        shapes.append(shape)
        weights.append(add(step.weight if isinstance(step, Linear) else None))
        biases.append(add(step.bias if isinstance(step, Linear) else None))
    return compiled.MlpEnergy(
        widths=list(program.widths),
        shapes=shapes,
        activation=KINDS.index(program.activation.kind),
        leak=program.activation.slope,
        half=precision == "bf16",
        weights=weights,
        biases=biases,
        head=add(program.head),
        constant=program.constant,
    )


def _stride(rows: Tensor | None) -> int:
    """Return the stride from one sample's row to the next; 0 where they share one."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.shape[1]
