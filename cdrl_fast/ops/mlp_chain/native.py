"""`mlp_chain` in C++ (csrc/cpu/mlp_chain.cpp)."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cdrl_fast._native import load
from cdrl_fast.ops.mlp_chain.program import KINDS, Linear, Program

PRECISIONS = ("fp32", "bf16")


class Plan:
    """A program made ready for the kernels: weights packed once, and again when they change.

    Args:
        program: float32, on the CPU.
        precision: "fp32" or "bf16", of the matrix products that do not read the state.
    """

    def __init__(self, program: Program, precision: str) -> None:
        module = load()
        assert module is not None
        # Not the program itself: the cache of plans must not keep it.
        self._tensors = program.tensors
        self._linear = [i if isinstance(i, Linear) else None for i in program.instructions]
        self._head, self._constant = program.head, program.constant
        shapes = []
        for step in program.instructions:
            if isinstance(step, Linear):
                row = step.bias.start if isinstance(step.bias, slice) else -1
                kind, slope = KINDS.index(step.activation.kind), step.activation.slope
                shapes.append((step.source, step.target, kind, slope, True, row))
            else:
                shapes.append((step.source, step.target, 0, 0.0, False, -1))
        last = program.activation
        self.compiled: Any = module.MlpPlan(
            list(program.widths), shapes, KINDS.index(last.kind), last.slope, precision == "bf16"
        )
        self._versions: list[int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Packs the weights if they may have changed."""
        # Tensors made in inference mode count no versions: those are packed every time.
        known = not any(t.is_inference() for t in self._tensors)
        versions = [t._version for t in self._tensors] if known else None
        if versions is not None and versions == self._versions:
            return
        kept: list[Tensor] = []

        def address(tensor: Tensor | slice | None) -> int:
            if not isinstance(tensor, Tensor):
                return 0
            kept.append(tensor.detach().contiguous())
            return kept[-1].data_ptr()

        weights = [0 if i is None else address(i.weight) for i in self._linear]
        biases = [0 if i is None else address(i.bias) for i in self._linear]
        self.compiled.load(weights, biases, address(self._head), self._constant)
        self._versions = versions


_PLANS: WeakKeyDictionary[Program, dict[str, Plan]] = WeakKeyDictionary()


def plan_of(program: Program, precision: str) -> Plan:
    """The plan of a program, made once and kept as long as the program lives."""
    plans = _PLANS.setdefault(program, {})
    plan = plans.get(precision)
    if plan is None:
        plan = plans[precision] = Plan(program, precision)
    else:
        plan.refresh()
    return plan


def chain(
    program: Program,
    precision: str,
    y: Tensor,
    anchor: Tensor | None,
    rows: Tensor | None,
    steps: int,
    table: Tensor | None,
    coefficients: tuple[float, float, float, float],
    place: tuple[int, int, int],
    first_bad: Tensor | None,
) -> None:
    """Writes ``y``. All tensors float32 and dense, none sharing memory with ``y``."""
    plan = plan_of(program, precision)
    plan.compiled.chain(
        y.data_ptr(),
        0 if anchor is None else anchor.data_ptr(),
        y.shape[0],
        steps,
        0 if table is None else table.data_ptr(),
        *coefficients,
        *_rows(rows),
        *place,
        0 if first_bad is None else first_bad.data_ptr(),
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version(y)


def value_and_gradient(
    program: Program, precision: str, y: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As in the reference; tensors float32 and dense."""
    value, gradient = y.new_empty(y.shape[0]), torch.empty_like(y)
    plan_of(program, precision).compiled.gradient(
        y.data_ptr(),
        y.shape[0],
        *_rows(rows),
        value.data_ptr(),
        gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return value, gradient


def _rows(rows: Tensor | None) -> tuple[int, int]:
    """Address and stride from one sample's row to the next."""
    if rows is None:
        return 0, 0
    return rows.data_ptr(), rows.shape[1] if rows.shape[0] > 1 else 0
