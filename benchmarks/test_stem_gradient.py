"""Benchmark of the image gradient with a Langevin update: cuDNN, our two kernels, and our one."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from race import Race

from cdrl_fast.ops import dispatch, langevin_step_
from cdrl_fast.ops.layout import filters
from cdrl_fast.ops.stem_gradient import stem_gradient, stem_langevin_

BATCHES = [64, pytest.param(1024, marks=pytest.mark.paper)]
NAMES = ("cudnn", "two kernels", "one kernel")
IMAGE, SIDE, CHANNELS = 3, 32, 128
STEP = {"drift": 1e-3, "pull": 1e-3, "noise_std": 0.1, "rng": (1, 2, 0)}


@cache
def build_race(batch, device):
    start, anchor, gradient = torch.randn(3, batch, IMAGE, SIDE, SIDE, device=device)
    g = torch.randn(batch, SIDE, SIDE, CHANNELS, device=device, dtype=torch.float16)
    weight = (0.2 * torch.randn(9, IMAGE, CHANNELS, device=device)).half()
    kernel = filters(weight).half().contiguous(memory_format=torch.channels_last)
    channels_last = g.permute(0, 3, 1, 2)

    def library(y):
        slope = torch.nn.functional.conv_transpose2d(channels_last, kernel, padding=1)
        return langevin_step_(y, slope, anchor, **STEP)

    def two(y):
        stem_gradient(g, weight, out=gradient, backend="triton")
        return langevin_step_(y, gradient, anchor, **STEP)

    def one(y):
        return stem_langevin_(y, g, weight, anchor, backend="triton", **STEP)

    runs = dict(zip(NAMES, (library, two, one), strict=True))
    # The reference runs on the CPU, because torch's convolutions on GPUs round float32 to TF32.
    tensors = [t.cpu() for t in (g, weight)]
    expected = stem_langevin_(
        start.cpu().clone(), *tensors, anchor.cpu(), backend="reference", **STEP
    )
    for name, run in runs.items():
        error = (run(start.clone()).cpu() - expected).abs().max()
        assert error < 1e-3, (name, error)
    slope = stem_gradient(*tensors, backend="reference")
    assert (gradient.cpu() - slope).norm() < 1e-3 * slope.norm()
    # Each contender updates its own state.
    contenders = {name: partial(run, start.clone()) for name, run in runs.items()}
    work = {
        "gigabytes": (g.nbytes + 3 * start.nbytes) / 1e9,
        "gflop": 2 * weight.numel() * batch * SIDE**2 / 1e9,
    }
    group = f"stem gradient and update, {batch}×{IMAGE}×{SIDE}×{SIDE} from {CHANNELS}"
    return Race(group, device, work, contenders)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_stem_gradient(benchmark, name, batch, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(batch, device).time(benchmark, name, rounds)
