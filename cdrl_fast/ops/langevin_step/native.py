"""`langevin_step` in C++ (csrc/cpu/noise/) and CUDA C++ (csrc/cuda/langevin_step.cu)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast._extension import module

GRAD_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of gradients that the kernels read, and their numbers in the compiled module."""


def langevin_step(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    coefficients: tuple[float, float, float, float],
    position: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
) -> None:
    """Write ``out``, which may be ``x``; float32, dense and not empty, on the CPU or a GPU.

    Args:
        out, x, grad, anchor, first_bad: as in the public `langevin_step`.
        table: the coefficients as (4, batch), read instead of ``coefficients``; or None.
        coefficients: drift, pull, noise_std, rescale.
        position: (seed, draw, first_sample).
        rng: an `rng_state`, read instead of ``position`` and advanced by one draw; or None.
    """
    compiled = module()
    batch = x.shape[0]
    arguments = (
        out.data_ptr(),
        x.data_ptr(),
        grad.data_ptr(),
        GRAD_TYPES[grad.dtype],
        0 if anchor is None else anchor.data_ptr(),
        batch,
        x.numel() // batch,
        0 if table is None else table.data_ptr(),
        *coefficients,
        *position,
        0 if rng is None else rng.data_ptr(),
        0 if first_bad is None else first_bad.data_ptr(),
    )
    if x.is_cuda:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        compiled.langevin_step_cuda(*arguments, x.device.index, stream)
    else:
        compiled.langevin_step_cpu(*arguments, torch.get_num_threads())


def bound(
    x: Tensor,
    coefficients: tuple[float, float, float, float],
    seed: int,
    first_sample: int,
    first_bad: Tensor,
) -> Callable[[Tensor, int], None]:
    """Return a function of (grad, draw) that updates ``x`` in place; a call costs 2 µs, not 20."""
    compiled = module()
    batch, address, bad = x.shape[0], x.data_ptr(), first_bad.data_ptr()
    # Neither anchor nor table.
    constants = (0, batch, x.numel() // batch, 0, *coefficients, seed)
    if x.is_cuda:
        kernel = compiled.langevin_step_cuda
        stream = torch.cuda.current_stream(x.device).cuda_stream
        last: tuple[int, ...] = (x.device.index, stream)
    else:
        kernel = compiled.langevin_step_cpu
        last = (torch.get_num_threads(),)
    grad_type, increment_version = GRAD_TYPES[x.dtype], torch.autograd.graph.increment_version

    def step(grad: Tensor, draw: int) -> None:
        grad = grad.contiguous()
        kernel(
            address, address, grad.data_ptr(), grad_type, *constants, draw, first_sample, 0, bad,
            *last,
        )  # fmt: skip
        increment_version(x)

    return step
