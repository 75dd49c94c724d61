"""Benchmark of the first convolution and its activation: cuDNN, compiled, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, signs_differ

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.layout import filters
from cdrl_fast.ops.stem import stem

BATCHES = [64, pytest.param(1024, marks=pytest.mark.paper)]
NAMES = ("cudnn", "compiled", "triton")
IMAGE, SIDE, CHANNELS = 3, 32, 128


def plain(y, kernel, bias):
    y = y.to(kernel.dtype, memory_format=torch.channels_last)
    return torch.nn.functional.leaky_relu(
        torch.nn.functional.conv2d(y, kernel, bias, padding=1), 0.2
    )


@cache
def build_race(batch, device):
    y = torch.randn(batch, IMAGE, SIDE, SIDE, device=device)
    weight = (0.2 * torch.randn(9, IMAGE, CHANNELS, device=device)).half()
    bias = torch.randn(CHANNELS, device=device)
    kernel = filters(weight).half().contiguous(memory_format=torch.channels_last)
    out = torch.empty(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    signs = torch.empty(CHANNELS // 32, batch * SIDE**2, dtype=torch.int32, device=device)
    compiled = torch.compile(plain)

    def ours():
        return stem(y, weight, bias, out=out, signs=signs, backend="triton").permute(0, 3, 1, 2)

    contenders = {
        "cudnn": lambda: plain(y, kernel, bias.half()),
        "compiled": lambda: compiled(y, kernel, bias.half()),
        "triton": ours,
    }
    # The reference runs on the CPU, because torch's convolutions on GPUs round float32 to TF32.
    bits = torch.empty(signs.shape, dtype=torch.int32)
    expected = stem(y.cpu(), weight.cpu(), bias.cpu(), signs=bits, backend="reference")
    for name, run in contenders.items():
        error = (run().cpu() - expected.permute(0, 3, 1, 2)).abs().max()
        assert error < 2e-2, (name, error)
    assert signs_differ(signs, bits) < 1e-4
    work = {
        "gigabytes": (y.nbytes + out.nbytes + signs.nbytes) / 1e9,
        "gflop": 2 * weight.numel() * batch * SIDE**2 / 1e9,
    }
    return Race(f"stem, {batch}×{IMAGE}×{SIDE}×{SIDE} to {CHANNELS}", device, work, contenders)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_stem(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(batch, device).time(benchmark, name, rounds)
