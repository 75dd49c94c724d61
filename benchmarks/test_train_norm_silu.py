"""Norm, scale, shift and SiLU being learned, with gradients: PyTorch, compiled, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, batch_of, with_gradients
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.train_norm_silu import train_norm_silu

# Batch, channels, side: of the shipped digits recipe and of width 32 at 28×28.
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
def race(name, device):
    batch, channels, side = CASES[name]
    batch = batch_of(batch)
    x, grad = torch.randn(2, batch, channels, side, side)
    small = (1 + 0.1 * torch.randn(channels), 0.1 * torch.randn(channels))
    small = (*small, 0.3 * torch.randn(batch, 2 * channels))
    last = [t.clone(memory_format=torch.channels_last) for t in (x, grad)]
    found = {
        "eager": with_gradients(plain, [x.clone(), *small], grad),
        "compiled": with_gradients(torch.compile(plain), [x.clone(), *small], grad),
        "native": with_gradients(native, [last[0], *small], last[1]),
    }
    doubles = [t.detach().double() for t in (x, *small)]
    exact = with_gradients(plain, doubles, grad.double())()
    for contender, run in found.items():
        for got, wanted in zip(run(), exact, strict=True):
            error = (got - wanted).norm() / wanted.norm()
            assert error < 1e-5, (contender, error)
    # x is read and y written; then x and a gradient are read, and another is written.
    work = {"calls": 1, "gigabytes": 5 * x.nbytes / 1e9}
    return Race(f"train_norm_silu, {batch}×{channels}×{side}×{side}", device, work, found)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_train_norm_silu(benchmark, name, case, device, rounds):
    if why := dispatch.reason("native", device):
        pytest.skip(why)
    race(case, device).time(benchmark, name, rounds)
