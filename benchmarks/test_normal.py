"""Benchmark of the noise stream against PyTorch's own generator."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast.ops import dispatch, normal
from cdrl_fast.ops.normal import BACKENDS

SHAPE = (256, 3, 32, 32)
NAMES = ("eager", "reference", "native", "cuda", "triton", "fill")


@cache
def build_race(device):
    expected = normal(SHAPE, seed=1, draw=2, device=device, backend="reference")
    inner = 20 if device.type == "cuda" else 10
    race = Race("normal 256×3×32×32", device, {"draws": inner, "elements": expected.numel()})
    out = torch.empty(SHAPE, device=device)
    race.contenders["eager"] = lambda: [torch.randn(SHAPE, device=device) for _ in range(inner)]
    race.contenders["fill"] = lambda: [out.zero_() for _ in range(inner)]
    for backend in BACKENDS:
        if dispatch.reason(backend, device) is None:
            options = {"seed": 1, "draw": 2, "device": device, "backend": backend}
            assert (normal(SHAPE, **options) - expected).abs().max() < 2e-6
            race.contenders[backend] = lambda options=options: [
                normal(SHAPE, **options) for _ in range(inner)
            ]
    return race


@pytest.mark.parametrize("name", NAMES)
def test_normal(benchmark, name, device, rounds):
    if name in BACKENDS and (why := dispatch.reason(name, device)):
        pytest.skip(why)
    build_race(device).time(benchmark, name, rounds)
