"""Benchmark of norm, scale, shift and SiLU in training, with gradients: PyTorch and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, batch_of, with_gradients
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.train_norm_silu import train_norm_silu

# Batch, channels, side: of the digits recipe, and of width 32 at 28×28.
CASES = {"8×8": (64, 32, 8), "28×28": (64, 32, 28)}
NAMES = ("eager", "compiled", "native")
GROUPS = 32


def plain(x, weight, bias, row):
    h = F.group_norm(x, GROUPS, weight, bias, 1e-6)
    scale, shift = row[:, :, None, None].chunk(2, dim=1)
    return F.silu(h * (1 + scale) + shift)


def native(x, weight, bias, row):
    return train_norm_silu(x, weight, bias, GROUPS, row=row, backend="native")


@cache
def build_race(name, device):
    batch, channels, side = CASES[name]
    batch = batch_of(batch)
    x, grad = torch.randn(2, batch, channels, side, side)
    parameters = (1 + 0.1 * torch.randn(channels), 0.1 * torch.randn(channels))
    parameters = (*parameters, 0.3 * torch.randn(batch, 2 * channels))
    x_last, grad_last = (t.clone(memory_format=torch.channels_last) for t in (x, grad))
    contenders = {
        "eager": with_gradients(plain, [x.clone(), *parameters], grad),
        "compiled": with_gradients(torch.compile(plain), [x.clone(), *parameters], grad),
        "native": with_gradients(native, [x_last, *parameters], grad_last),
    }
    doubles = [t.detach().double() for t in (x, *parameters)]
    exact = with_gradients(plain, doubles, grad.double())()
    for contender, run in contenders.items():
        for actual, expected in zip(run(), exact, strict=True):
            error = (actual - expected).norm() / expected.norm()
            assert error < 1e-5, (contender, error)
    # Forward reads x and writes y; backward reads x and a gradient and writes a gradient.
    work = {"calls": 1, "gigabytes": 5 * x.nbytes / 1e9}
    return Race(f"train_norm_silu, {batch}×{channels}×{side}×{side}", device, work, contenders)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_train_norm_silu(benchmark, name, case, device, rounds):
    if why := dispatch.reason("native", device):
        pytest.skip(why)
    build_race(case, device).time(benchmark, name, rounds)
