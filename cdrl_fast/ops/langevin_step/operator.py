"""Registration of `torch.ops.cdrl_fast.langevin_step_into` and `langevin_step_onto`."""

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
    position = (seed, draw, first_sample)
    if chosen == "reference" or not x.numel():
        values = coefficients if table is None else tuple(table)
        source = position if rng is None else rng
        out.copy_(reference.langevin_step(x, grad, anchor, values, source, first_bad))
        return
    grad = grad if grad.dtype in native.GRAD_TYPES else grad.float()
    # A kernel's output must be dense, and must not partly overlap an input.
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
    step(target, x, grad, anchor, table, coefficients, position, rng, first_bad)
    if not direct:
        out.copy_(target)


def _onto(x: Tensor, *arguments: object) -> None:
    _into(x, x, *arguments)  # type: ignore[arg-type]


_ARGUMENTS = (
    "Tensor grad, Tensor? anchor, Tensor? table, float drift, float pull, float noise_std, "
    "float rescale, SymInt seed, SymInt draw, SymInt first_sample, Tensor(b!)? rng, "
    "Tensor(c!)? first_bad, str backend"
)
langevin_step_into = register(
    f"langevin_step_into(Tensor(a!) out, Tensor x, {_ARGUMENTS}) -> ()", _into
)
"""Operation that writes ``out``, which is not x.

``table``, if not None, is (4, batch) and replaces the four coefficients; ``rng``, if not None,
replaces (seed, draw, first_sample), and its draw is increased by one.
"""
langevin_step_onto = register(f"langevin_step_onto(Tensor(a!) x, {_ARGUMENTS}) -> ()", _onto)
"""The operation in place; a schema of its own tells torch.compile that x is written."""
