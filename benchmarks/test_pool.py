"""Benchmark of pooling between stages: PyTorch's pooling and activation, compiled, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, signs_differ

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.pool import pool, spread

BATCHES = [64, pytest.param(1024, marks=pytest.mark.paper)]
NAMES = ("eager", "compiled", "triton")
SIDE, CHANNELS = 32, 256


def forward(h):
    """Return the mean and its activation, as the plain network computes them."""
    mean = torch.nn.functional.avg_pool2d(h, 2)
    return mean, torch.nn.functional.leaky_relu(mean, 0.2)


def backward(g):
    return (0.25 * g).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@cache
def build_race(batch, device):
    h = torch.randn(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    a = torch.nn.functional.leaky_relu(h, 0.2)
    mean, out = torch.empty(2, batch, SIDE // 2, SIDE // 2, CHANNELS, device=device).half()
    signs = torch.empty(CHANNELS // 32, mean.numel() // CHANNELS, dtype=torch.int32, device=device)
    back = torch.empty_like(a)
    channels_last = h.permute(0, 3, 1, 2)
    compiled_forward, compiled_backward = torch.compile(forward), torch.compile(backward)

    def plain(forward, backward):
        return backward(forward(channels_last)[1])

    def ours():
        pool(a, out=out, signs=signs, mean=mean, backend="triton")
        return spread(out, out=back, backend="triton").permute(0, 3, 1, 2)

    contenders = {
        "eager": lambda: plain(forward, backward),
        "compiled": lambda: plain(compiled_forward, compiled_backward),
        "triton": ours,
    }
    means, stored = torch.empty_like(mean), torch.empty_like(out)
    bits = torch.empty_like(signs)
    pool(a, out=stored, signs=bits, mean=means, backend="reference")
    expected = spread(stored, backend="reference").permute(0, 3, 1, 2)
    for name, run in contenders.items():
        error = (run() - expected).abs().max()
        assert error < 1e-2, (name, error)
    torch.testing.assert_close(mean, means)
    torch.testing.assert_close(out, stored)
    assert signs_differ(signs, bits) < 1e-4
    # Forward and backward each read their input and write their outputs once.
    moved = 2 * a.nbytes + 3 * mean.nbytes + signs.nbytes
    name = f"pool and spread, {batch}×{SIDE}×{SIDE}×{CHANNELS}"
    return Race(name, device, {"gigabytes": moved / 1e9}, contenders)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_pool(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(batch, device).time(benchmark, name, rounds)
