"""Reference of `mlp_chain`, in plain torch, in any floating dtype and without autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cdrl_fast.ops.langevin_step.reference import langevin_step
from cdrl_fast.ops.mlp_chain.program import Add, Program

if TYPE_CHECKING:
    from cdrl_fast.ops.phase import Phase


def forward(program: Program, y: Tensor, rows: Tensor | None) -> list[Tensor]:
    """Return all buffers, (batch, width) each.

    Args:
        y: (batch, dim).
        rows: (1 or batch, program.rows), or None.
    """
    buffers: list[Tensor | None] = [y, *[None] * (len(program.widths) - 1)]
    for step in program.instructions:
        part = buffers[step.source]
        assert part is not None
        if not isinstance(step, Add):
            part = step.activation(part) @ step.weight.mT
            if isinstance(step.bias, Tensor):
                part = part + step.bias
            elif step.bias is not None:
                assert rows is not None
                part = part + rows[:, step.bias]
        before = buffers[step.target]
        buffers[step.target] = part if before is None else before + part
    return [b for b in buffers if b is not None]


def value(program: Program, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return f(y), (batch,); differentiable."""
    last = forward(program, y, rows)[-1]
    return program.activation(last) @ program.head + program.constant


def value_and_gradient(program: Program, y: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return f(y), (batch,), and its gradient, (batch, dim)."""
    buffers = forward(program, y, rows)
    last = buffers[-1]
    value = program.activation(last) @ program.head + program.constant
    gradients: list[Tensor | None] = [None] * len(buffers)
    gradients[-1] = program.head * program.activation.derivative(last)
    for step in reversed(program.instructions):
        part = gradients[step.target]
        assert part is not None
        if not isinstance(step, Add):
            part = step.activation.derivative(buffers[step.source]) * (part @ step.weight)
        before = gradients[step.source]
        gradients[step.source] = part if before is None else before + part
    assert gradients[0] is not None
    return value, gradients[0]


def chain(
    program: Program,
    y: Tensor,
    anchor: Tensor | None,
    rows: Tensor | None,
    phase: Phase,
    first_bad: Tensor | None,
) -> Tensor:
    """Return the state after the Langevin steps of a phase from ``y``, a new tensor.

    Args:
        program, anchor, rows, phase: as for `mlp_chain_`.
        first_bad: lowered to draw·2³¹ + index of the first sample that is not finite.
    """
    for k, rng in enumerate(phase.key.steps(phase.steps), 1):
        _, gradient = value_and_gradient(program, y, rows)
        rescale = phase.rescale if k == phase.steps else 1.0
        coefficients = (*phase.coefficients[:3], rescale)
        y = langevin_step(y, gradient, anchor, coefficients, rng, first_bad)
    return y
