"""`torch.ops.cdrl_fast.langevin_step_into` and `_onto`: the registered operations."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.langevin_step import native, reference
from cdrl_fast.ops.layout import overlap, same_elements
from cdrl_fast.ops.registration import register


def _into(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    drift: float,
    pull: float,
    noise_std: float,
    rescale: float,
    seed: int,
    draw: int,
    first_sample: int,
    rng: Tensor | None,
    first_bad: Tensor | None,
    backend: str,
) -> None:
    chosen = choose("langevin_step", backend, x.device, x.dtype)
    coefficients = (drift, pull, noise_std, rescale)
    place = (seed, draw, first_sample)
    if chosen == "reference" or not x.numel():
        rows = coefficients if table is None else tuple(table)
        where = place if rng is None else rng
        out.copy_(reference.langevin_step(x, grad, anchor, rows, where, first_bad))
        return
    grad = grad if grad.dtype in native.GRAD_TYPES else grad.float()
    # What a kernel writes must be dense, and must not share memory with what it has yet to read.
    x, grad = x.contiguous(), grad.contiguous()
    anchor = None if anchor is None else anchor.contiguous()
    inputs = [t for t in (x, grad, anchor) if t is not None]
    direct = out.is_contiguous() and all(
        same_elements(out, t) or not overlap(out, t) for t in inputs
    )
    target = out if direct else torch.empty_like(x)
    if chosen == "triton":
        from cdrl_fast.ops.langevin_step import triton_kernel

        step = triton_kernel.langevin_step
    else:
        step = native.langevin_step
    step(target, x, grad, anchor, table, coefficients, place, rng, first_bad)
    if not direct:
        out.copy_(target)


def _onto(x: Tensor, *rest: object) -> None:
    _into(x, x, *rest)  # type: ignore[arg-type]


_REST = (
    "Tensor grad, Tensor? anchor, Tensor? table, float drift, float pull, float noise_std, "
    "float rescale, SymInt seed, SymInt draw, SymInt first_sample, Tensor(b!)? rng, "
    "Tensor(c!)? first_bad, str backend"
)
langevin_step_into = register(f"langevin_step_into(Tensor(a!) out, Tensor x, {_REST}) -> ()", _into)
"""Writes ``out``, which is not x.

``table``, if given, is (4, batch) with the four coefficients' rows; ``rng``, if given, is read
instead of (seed, draw, first_sample) and moved on by one draw.
"""
langevin_step_onto = register(f"langevin_step_onto(Tensor(a!) x, {_REST}) -> ()", _onto)
"""The same in place. Two schemas, since a compiler must know whether x is written."""
