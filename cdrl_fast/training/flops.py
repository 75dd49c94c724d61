"""The roofline of training: its FLOP divided by the matmul rate measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.precision import Precision


def roofline_seconds(model: CDRL, precision: Precision) -> float:
    """Return the roofline of training on the model's device, in seconds per sample: FLOP / rate.

    Args:
        model: in eval mode, not sharded; each network is called once.
        precision: precision of the convolutions and matmuls.
    """
    device = next(model.parameters()).device
    return training_flop(model) / matmul_rate(device, precision.network, precision.fp32_precision)


@torch.no_grad()
def training_flop(model: CDRL) -> int:
    """Return the FLOP of a training iteration per sample, those of convolutions and matmuls.

    With E for one call of the energy and I for one of the initializer: each of K Langevin steps
    takes 2 E (value and input gradient), each of the energy's two phases 3 E (the gradient of the
    weights, too), the initializer's loss 3 I. Recomputation to save memory does not count, and a
    convolution counts as its definition, even if an algorithm needs fewer multiplications.
    """
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    x = torch.zeros(1, *model.sample_shape, device=device, dtype=dtype)
    logsnr = torch.zeros(1, device=device, dtype=dtype)
    label = torch.zeros(1, device=device, dtype=torch.int64) if model.num_classes else None
    energy = flop_of(partial(model.energy, x, logsnr, label))
    flop = (2 * model.schedule.steps + 6) * energy
    if model.initializer is not None:
        flop += 3 * flop_of(partial(model.initializer, x, logsnr, label))
    return flop


def flop_of(call: Callable[[], object]) -> int:
    """Return the FLOP of the convolutions and matmuls in a call of modules."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, where it is installed

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@lru_cache
def matmul_rate(device: torch.device, dtype: torch.dtype, fp32: str) -> float:
    """Measure the FLOP per second of a large square matmul: the best of six, cached.

    Args:
        device, dtype: device and dtype of the matrices.
        fp32: float32 matmul precision, "tf32" or "ieee", see `fp32_precision`.
    """
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    times = []
    with fp32_precision(fp32, matmul=True):
        for _ in range(6):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            times.append(time.perf_counter() - start)
    return float(2 * size**3 / min(times))
