"""The least time that training could take: its products, at the rate measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.precision import Precision


def sample_seconds(model: CDRL, precision: Precision) -> float:
    """The floor of an iteration's time on the model's device, divided by its batch: FLOP / rate.

    Args:
        model: whole, in eval mode; its networks are called once.
        precision: of the products.
    """
    device = next(model.parameters()).device
    return sample_flop(model) / product_rate(device, precision.network, precision.fp32_precision)


@torch.no_grad()
def sample_flop(model: CDRL) -> int:
    """FLOP of the products of a training iteration, for each sample of its batch.

    With a call of the energy E and of the initializer I: K Langevin steps take 2 E each (value and
    gradient to the input), the energy's two phases 3 E each (with gradients to the weights, too),
    the initializer's 3 I. What is computed again to save memory does not count, nor do convolutions
    that need fewer products than their definition has.
    """
    like = next(model.parameters())
    x = torch.zeros(1, *model.sample_shape, device=like.device, dtype=like.dtype)
    logsnr = torch.zeros(1, device=like.device, dtype=like.dtype)
    label = torch.zeros(1, device=like.device, dtype=torch.int64) if model.num_classes else None
    energy = flop_of(partial(model.energy, x, logsnr, label))
    flop = (2 * model.schedule.steps + 6) * energy
    if model.initializer is not None:
        flop += 3 * flop_of(partial(model.initializer, x, logsnr, label))
    return flop


def flop_of(call: Callable[[], object]) -> int:
    """FLOP of the convolutions and matrix products that a call of modules takes."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, where it is installed

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@lru_cache
def product_rate(device: torch.device, dtype: torch.dtype, name: str) -> float:
    """FLOP a second of a large square matrix product, the best of a few; measured once.

    Args:
        name: how float32 is taken, see `products`.
    """
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    times = []
    with fp32_precision(name, matrices=True):
        for _ in range(6):
            start = time.perf_counter()
            (a @ a)[0, 0].item()
            times.append(time.perf_counter() - start)
    return float(2 * size**3 / min(times))
