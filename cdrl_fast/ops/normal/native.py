"""`normal` in C++ (csrc/cpu/noise/) and CUDA C++ (csrc/cuda/normal.cu)."""

from __future__ import annotations

from torch import Tensor

from cdrl_fast._extension import module
from cdrl_fast.ops.dispatch import compiled_kernel


def normal(out: Tensor, seed: int, draw: int, first_sample: int) -> None:
    """Fill ``out``, float32, dense and not empty, on the CPU or on a CUDA device."""
    batch = out.shape[0]
    arguments = module().NormalArguments(
        out=out.data_ptr(),
        batch=batch,
        elements=out.numel() // batch,
        seed=seed,
        draw=draw,
        first_sample=first_sample,
    )
    kernel, more = compiled_kernel("normal", out)
    kernel(arguments, *more)
