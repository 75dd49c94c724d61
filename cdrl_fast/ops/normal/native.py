"""`normal` in C++ (csrc/cpu/noise/) and CUDA C++ (csrc/cuda/normal.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast._extension import module


def normal(out: Tensor, seed: int, draw: int, first_sample: int) -> None:
    """Fill ``out``, float32, dense and not empty, on the CPU or on a CUDA device."""
    compiled = module()
    batch = out.shape[0]
    arguments = (out.data_ptr(), batch, out.numel() // batch, seed, draw, first_sample)
    if out.is_cuda:
        stream = torch.cuda.current_stream(out.device).cuda_stream
        compiled.normal_cuda(*arguments, out.device.index, stream)
    else:
        compiled.normal_cpu(*arguments, torch.get_num_threads())
