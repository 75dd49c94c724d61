"""Samples from the shipped model of digits: the reference, an afternoon's work, and `Sampler`."""

from __future__ import annotations

import time
from functools import cache, partial

import pytest
import torch
from race import Race

from cdrl_fast import CDRL, Sampler, reference
from cdrl_fast.bench import afternoon

SIZES = [
    pytest.param(64, id="64"),
    pytest.param(512, id="512", marks=pytest.mark.paper),
]


@cache
def race(n, device):
    """The plain path draws its noise by torch, as a user would; it is checked with the stream's."""
    model = CDRL.from_pretrained("digits").to(device).eval()
    by_hand = Sampler(afternoon(model))
    found = {
        "eager": lambda: reference.sample(model, n, label=1, noise="torch"),
        "afternoon": lambda: by_hand.sample(n, label=1),
        "ours, fp32": partial(Sampler(model, precision="fp32").sample, n, label=1),
    }
    if device.type == "cpu":
        found["ours, bf16"] = partial(Sampler(model, precision="bf16").sample, n, label=1)
    # Chains amplify rounding: nearly all samples agree closely, and the typical one to 1e-5.
    difference = (found["ours, fp32"]() - reference.sample(model, n, label=1)).abs().flatten(1)
    assert difference.median() < 1e-4
    assert (difference.amax(1) < 1e-2).float().mean() > 0.9
    return Race(f"sampling digits, batch {n}", device, {"samples": n}, found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["eager", "afternoon", "ours, fp32", "ours, bf16"])
def test_sampling(benchmark, name, size, device, rounds, joules):
    made = race(size, device)
    if name not in made.contenders:
        pytest.skip("compiled half precision of the energy is for CPUs")
    made.time(benchmark, name, rounds)
    if joules is not None and not benchmark.disabled:
        before, begun, samples = joules(), time.perf_counter(), 0
        while time.perf_counter() - begun < 1.0:  # the meter is updated about every 0.1 s
            made.contenders[name]()
            samples += size
        torch.cuda.synchronize(device)
        benchmark.extra_info["joules_per_sample"] = (joules() - before) / samples
