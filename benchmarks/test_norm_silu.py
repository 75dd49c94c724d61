"""Benchmark of group norm with scale, shift and SiLU: PyTorch, compiled, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.norm_silu import norm_silu

BATCHES = [64, pytest.param(1024, marks=pytest.mark.paper)]
NAMES = ("eager", "compiled", "triton")
SIDE, CHANNELS = 32, 64


def plain(planes, weight, bias, offset, row):
    """Compute it as the plain network does, on channels-last planes in their precision."""
    h = F.group_norm(planes + offset[:, None, None], 32, weight, bias, 1e-6)
    scale, shift = row[:, :, None, None].chunk(2, dim=1)
    return F.silu(h * (1 + scale) + shift)


@cache
def build_race(batch, device):
    x = torch.randn(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    per_channel = torch.randn(3, CHANNELS, device=device)
    row, out = torch.randn(1, 2 * CHANNELS, device=device), torch.empty_like(x)
    half = (x.permute(0, 3, 1, 2), *per_channel.half(), row.half())
    compiled = torch.compile(plain)

    weight, bias, offset = per_channel

    def ours():
        actual = norm_silu(x, weight, bias, offset=offset, row=row, out=out, backend="triton")
        return actual.permute(0, 3, 1, 2)

    contenders = {
        "eager": lambda: plain(*half),
        "compiled": lambda: compiled(*half),
        "triton": ours,
    }
    expected = norm_silu(x, weight, bias, offset=offset, row=row, backend="reference")
    expected = expected.permute(0, 3, 1, 2).float()
    for name, run in contenders.items():
        error = (run() - expected).norm() / expected.norm()
        assert error < 1e-2, (name, error)
    # x is read once and the output written once.
    work = {"gigabytes": 2 * x.nbytes / 1e9}
    return Race(f"norm_silu, {batch}×{SIDE}×{SIDE}×{CHANNELS}", device, work, contenders)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_norm_silu(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(batch, device).time(benchmark, name, rounds)
