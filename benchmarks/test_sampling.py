"""Benchmark of sampling digits: the reference, hand-tuned PyTorch, and `Sampler`."""

from __future__ import annotations

import time
from functools import cache, partial

import pytest
import torch
from race import Race

from cdrl_fast import CDRL, Sampler, reference
from cdrl_fast.cli.bench import hand_tuned
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.precision import fast_bfloat16

SIZES = [
    pytest.param(64, id="64"),
    pytest.param(512, id="512", marks=pytest.mark.paper),
]
OURS = {
    "cpu": {p: {"precision": p} for p in ("fp32", *(["bf16"] if fast_bfloat16() else []))},
    "cuda": {
        "fp32": {"precision": "fp32"},
        "fp16": {"precision": "fp16"},
        "fp16, no graph": {"precision": "fp16", "graph": "off"},
        "fp16, chain": {"precision": "fp16", "graph": "chain"},
    },
}
NAMES = ("eager", "hand-tuned", *dict.fromkeys(f"ours, {n}" for d in OURS.values() for n in d))


@cache
def build_race(n, device):
    """Return the race; the eager contender draws its noise by torch, as a user would."""
    model = CDRL.from_pretrained("digits").to(device).eval()
    by_hand = Sampler(hand_tuned(model))
    contenders = {
        "eager": lambda: reference.sample(model, n, label=1, noise="torch"),
        "hand-tuned": lambda: by_hand.sample(n, label=1),
    }
    for name, options in OURS[device.type].items():
        contenders[f"ours, {name}"] = partial(Sampler(model, **options).sample, n, label=1)
    with fp32_precision("ieee", matmul=True):  # on GPUs the default is TF32
        expected = reference.sample(model, n, label=1)
    for name, run in contenders.items():
        check(name, run(), expected)
    return Race(f"sampling digits, batch {n}", device, {"samples": n}, contenders)


def check(name, samples, expected):
    """Check samples against the reference's: eager's by their mean, the others one by one."""
    if name == "eager":
        # Its noise differs, so only means are compared; the mean of another label differs by 1.7.
        assert (samples.mean(0) - expected.mean(0)).abs().max() < 0.6, name
        return
    # Chains amplify rounding errors, so only nearly all samples agree closely; errors of half
    # precision are a thousand times as large.
    median, bound = (1e-4, 1e-2) if name == "ours, fp32" else (5e-3, 0.2)
    difference = (samples - expected).abs().flatten(1)
    assert difference.median() < median, name
    assert (difference.amax(1) < bound).float().mean() > 0.9, name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_sampling(benchmark, name, size, device, rounds, joules):
    race = build_race(size, device)
    if name not in race.contenders:
        pytest.skip(f"not timed on {device.type}")
    race.time(benchmark, name, rounds)
    if joules is not None and not benchmark.disabled:
        before, begun, samples = joules(), time.perf_counter(), 0
        while time.perf_counter() - begun < 1.0:  # the energy counter is updated about every 0.1 s
            race.contenders[name]()
            samples += size
        torch.cuda.synchronize(device)
        benchmark.extra_info["joules_per_sample"] = (joules() - before) / samples
