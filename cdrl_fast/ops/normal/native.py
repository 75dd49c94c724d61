"""`normal` in C++ (csrc/cpu/normal.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._native import load
from cdrl_fast.ops.philox import signed


def normal(shape: tuple[int, ...], *, seed: int, draw: int, first_sample: int) -> Tensor:
    """Float32 on the CPU."""
    module = load()
    assert module is not None
    out = torch.empty(shape, dtype=torch.float32)
    if out.numel():
        module.normal_cpu(
            out.data_ptr(),
            shape[0],
            out.numel() // shape[0],
            signed(seed),
            draw,
            first_sample,
            torch.get_num_threads(),
        )
    return out
