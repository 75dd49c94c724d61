"""`langevin_step` in C++ (csrc/cpu/langevin_step.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._native import load
from cdrl_fast.ops.langevin_step.reference import Coefficient
from cdrl_fast.ops.philox import signed

GRAD_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def langevin_step(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    *,
    coefficients: tuple[Coefficient, ...],
    rng: tuple[int, int, int],
    first_bad: Tensor | None,
) -> None:
    """Writes ``out``, which may be ``x``; float32 on the CPU.

    Args:
        coefficients: drift, pull, noise_std, rescale.
    """
    module = load()
    assert module is not None
    if not x.numel():
        return
    x, grad = x.contiguous(), grad.contiguous()
    if grad.dtype not in GRAD_TYPES:
        grad = grad.float()
    anchor = None if anchor is None else anchor.contiguous()
    # What the kernel writes must be dense, and must not share memory with what it has yet to read.
    inputs = [t for t in (x, grad, anchor) if t is not None]
    target = out if out.is_contiguous() and not any(_overlap(out, t) for t in inputs) else None
    written = torch.empty_like(x) if target is None else target
    table = _table(coefficients, x.shape[0])
    scalars = (0.0, 0.0, 0.0, 0.0) if table is not None else coefficients
    seed, draw, first_sample = rng
    module.langevin_step_cpu(
        written.data_ptr(),
        x.data_ptr(),
        grad.data_ptr(),
        GRAD_TYPES[grad.dtype],
        0 if anchor is None else anchor.data_ptr(),
        x.shape[0],
        x.numel() // x.shape[0],
        0 if table is None else table.data_ptr(),
        *scalars,
        signed(seed),
        draw,
        first_sample,
        0,
        0 if first_bad is None else first_bad.data_ptr(),
        torch.get_num_threads(),
    )
    if target is None:
        out.copy_(written)


def _table(coefficients: tuple[Coefficient, ...], batch: int) -> Tensor | None:
    """(4, batch) float32 where any coefficient is a tensor."""
    if not any(isinstance(c, Tensor) for c in coefficients):
        return None
    rows = [torch.as_tensor(c, dtype=torch.float32).expand(batch) for c in coefficients]
    return torch.stack(rows)


def _overlap(out: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors share some memory without being the same elements."""
    if out.data_ptr() == other.data_ptr() and out.dtype == other.dtype:
        return False
    a, b = out.data_ptr(), other.data_ptr()
    return a < b + other.nbytes and b < a + out.nbytes
