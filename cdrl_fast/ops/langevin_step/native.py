"""`langevin_step` in C++ (csrc/cpu/noise) and CUDA C++ (csrc/cuda/langevin_step.cu)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast._extension import module

GRAD_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What kernels read gradients as; by its number in the compiled module."""


def langevin_step(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    coefficients: tuple[float, float, float, float],
    place: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
) -> None:
    """Writes ``out``, which may be ``x``; float32, dense and not empty, on the CPU or a GPU."""
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
        *place,
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
    """`langevin_step` in place on ``x``, as a function of (grad, draw): 2 µs a call, not 20."""
    compiled = module()
    batch, address, bad = x.shape[0], x.data_ptr(), first_bad.data_ptr()
    sizes = (0, batch, x.numel() // batch, 0, *coefficients, seed)
    if x.is_cuda:
        kernel = compiled.langevin_step_cuda
        where: tuple[int, ...] = (x.device.index, torch.cuda.current_stream(x.device).cuda_stream)
    else:
        kernel = compiled.langevin_step_cpu
        where = (torch.get_num_threads(),)
    code, written = GRAD_TYPES[x.dtype], torch.autograd.graph.increment_version

    def step(grad: Tensor, draw: int) -> None:
        grad = grad.contiguous()
        kernel(address, address, grad.data_ptr(), code, *sizes, draw, first_sample, 0, bad, *where)
        written(x)

    return step
