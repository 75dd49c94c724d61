"""Benchmark of the energy head and its gradient: PyTorch, compiled, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.head import head

BATCHES = [64, pytest.param(1024, marks=pytest.mark.paper)]
NAMES = ("eager", "compiled", "triton")
SIDE, CHANNELS = 4, 256


def plain(h, row):
    """Return energies and gradient, without autograd."""
    energy = (h.relu().float().sum(dim=(1, 2)) * row).sum(dim=1)
    return energy, torch.where(h > 0, row, 0.0).to(h.dtype)


@cache
def build_race(batch, device):
    h = torch.randn(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    a = torch.nn.functional.leaky_relu(h, 0.2)
    row = torch.randn(1, CHANNELS, device=device)
    out, gradient = torch.empty(batch, device=device), torch.empty_like(a)
    compiled = torch.compile(plain)

    def ours():
        return head(a, row, out=out, gradient=gradient, backend="triton"), gradient

    contenders = {
        "eager": lambda: plain(a, row),
        "compiled": lambda: compiled(a, row),
        "triton": ours,
    }
    slope = torch.empty_like(a)
    energy = head(a, row, gradient=slope, backend="reference")
    for name, run in contenders.items():
        actual = run()
        torch.testing.assert_close(actual[0], energy, rtol=1e-4, atol=1e-2, msg=name)
        torch.testing.assert_close(actual[1], slope, msg=name)
    moved = 2 * a.nbytes
    return Race(
        f"head, {batch}×{SIDE}×{SIDE}×{CHANNELS}", device, {"gigabytes": moved / 1e9}, contenders
    )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_head(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(batch, device).time(benchmark, name, rounds)
