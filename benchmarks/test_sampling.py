"""Samples from the shipped model of digits: the reference in eager mode, and `Sampler`."""

from __future__ import annotations

import time
from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast import CDRL, Sampler, reference

SIZES = [
    pytest.param((64, 2), id="64"),
    pytest.param((512, 15), id="512", marks=pytest.mark.paper),
]


@cache
def race(n, steps, device):
    model = CDRL.from_pretrained("digits").to(device).eval()
    sampler = Sampler(model)
    found = {
        "eager": lambda: reference.sample(model, n, steps=steps, label=1),
        "ours": lambda: sampler.sample(n, steps=steps, label=1),
    }
    # Chains amplify rounding: nearly all samples agree closely, and the typical one to 1e-5.
    difference = (found["ours"]() - found["eager"]()).abs().flatten(1)
    assert difference.median() < 1e-4
    assert (difference.amax(1) < 1e-2).float().mean() > 0.9
    return Race(f"sampling digits, {steps} steps a level", device, {"samples": n}, found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["eager", "ours"])
def test_sampling(benchmark, name, size, device, rounds, joules):
    made = race(*size, device)
    made.time(benchmark, name, max(3, rounds // 3))
    if joules is not None and not benchmark.disabled:
        before, begun, samples = joules(), time.perf_counter(), 0
        while time.perf_counter() - begun < 1.0:  # the meter is updated about every 0.1 s
            made.contenders[name]()
            samples += size[0]
        torch.cuda.synchronize(device)
        benchmark.extra_info["joules_per_sample"] = (joules() - before) / samples
