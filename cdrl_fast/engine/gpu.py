"""The question whether the operations for GPUs compute."""

from __future__ import annotations

import torch

from cdrl_fast.ops.dispatch import automatic
from cdrl_fast.ops.stem_gradient import BACKENDS
from cdrl_fast.precision import Precision


def uses_gpu_passes(device: torch.device, precision: Precision, backend: str) -> bool:
    """Return whether the operations for GPUs compute; in float64 the reference always does."""
    if precision.state == torch.float64:
        return False
    on_gpu = backend == "auto" and device.type == "cuda"
    return backend == "triton" or (on_gpu and automatic(device, BACKENDS) == "triton")
