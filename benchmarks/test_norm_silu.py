"""Group norm with scale, shift and SiLU: PyTorch, compiled, and ours."""

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
    """On channels-last planes, in their precision, as the plain network computes it."""
    h = F.group_norm(planes + offset[:, None, None], 32, weight, bias, 1e-6)
    scale, shift = row[:, :, None, None].chunk(2, dim=1)
    return F.silu(h * (1 + scale) + shift)


@cache
def race(batch, device):
    x = torch.randn(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    each = torch.randn(3, CHANNELS, device=device)
    row, out = torch.randn(1, 2 * CHANNELS, device=device), torch.empty_like(x)
    half = (x.permute(0, 3, 1, 2), *each.half(), row.half())
    compiled = torch.compile(plain)

    weight, bias, offset = each

    def ours():
        got = norm_silu(x, weight, bias, offset=offset, row=row, out=out, backend="triton")
        return got.permute(0, 3, 1, 2)

    found = {"eager": lambda: plain(*half), "compiled": lambda: compiled(*half), "triton": ours}
    wanted = norm_silu(x, weight, bias, offset=offset, row=row, backend="reference")
    wanted = wanted.permute(0, 3, 1, 2).float()
    for name, run in found.items():
        error = (run() - wanted).norm() / wanted.norm()
        assert error < 1e-2, (name, error)
    # Read once and written once.
    work = {"gigabytes": 2 * x.nbytes / 1e9}
    return Race(f"norm_silu, {batch}×{SIDE}×{SIDE}×{CHANNELS}", device, work, found)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_norm_silu(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    race(batch, device).time(benchmark, name, rounds)
