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
OURS = {
    "cpu": {"fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}},
    "cuda": {
        "fp32": {"precision": "fp32"},
        "fp16": {"precision": "fp16"},
        "fp16, no graph": {"precision": "fp16", "graph": "off"},
        "fp16, chain": {"precision": "fp16", "graph": "chain"},
    },
}
NAMES = ("eager", "afternoon", *dict.fromkeys(f"ours, {n}" for d in OURS.values() for n in d))


@cache
def race(n, device):
    """The plain path draws its noise by torch, as a user would; it is checked with the stream's."""
    model = CDRL.from_pretrained("digits").to(device).eval()
    by_hand = Sampler(afternoon(model))
    found = {
        "eager": lambda: reference.sample(model, n, label=1, noise="torch"),
        "afternoon": lambda: by_hand.sample(n, label=1),
    }
    for name, options in OURS[device.type].items():
        found[f"ours, {name}"] = partial(Sampler(model, **options).sample, n, label=1)
    # Chains amplify rounding: nearly all samples agree closely, and the typical one to 1e-5.
    difference = (found["ours, fp32"]() - reference.sample(model, n, label=1)).abs().flatten(1)
    assert difference.median() < 1e-4
    assert (difference.amax(1) < 1e-2).float().mean() > 0.9
    return Race(f"sampling digits, batch {n}", device, {"samples": n}, found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_sampling(benchmark, name, size, device, rounds, joules):
    made = race(size, device)
    if name not in made.contenders:
        pytest.skip(f"not one of {device.type}s")
    made.time(benchmark, name, rounds)
    if joules is not None and not benchmark.disabled:
        before, begun, samples = joules(), time.perf_counter(), 0
        while time.perf_counter() - begun < 1.0:  # the meter is updated about every 0.1 s
            made.contenders[name]()
            samples += size
        torch.cuda.synchronize(device)
        benchmark.extra_info["joules_per_sample"] = (joules() - before) / samples
