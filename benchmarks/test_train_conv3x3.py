"""Benchmark of a convolution in training, with all gradients: PyTorch, channels-last, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, batch_of, with_gradients
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.train_conv3x3 import train_conv3x3

# Batch, channels in and out, side: of the digits recipe, and of width 32 at 28×28.
CASES = {"8×8, 32 to 32": (64, 32, 32, 8), "14×14, 64 to 64": (64, 64, 64, 14)}
NAMES = ("eager", "hand-tuned", "native")


def plain(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def native(x, weight, bias):
    return train_conv3x3(x, weight, bias, backend="native")


@cache
def build_race(name, device):
    batch, ins, outs, side = CASES[name]
    batch = batch_of(batch)
    inputs = (
        torch.randn(batch, ins, side, side), torch.randn(outs, ins, 3, 3) / 17, torch.randn(outs),
    )  # fmt: skip
    grad = torch.randn(batch, outs, side, side)
    x, grad_last = (t.clone(memory_format=torch.channels_last) for t in (inputs[0], grad))
    contenders = {
        "eager": with_gradients(plain, [t.clone() for t in inputs], grad),
        "hand-tuned": with_gradients(plain, [x, *inputs[1:]], grad_last),
        "native": with_gradients(native, [x.detach().clone(), *inputs[1:]], grad_last),
    }
    exact = with_gradients(plain, [t.detach().double() for t in inputs], grad.double())()
    for contender, run in contenders.items():
        for actual, expected in zip(run(), exact, strict=True):
            error = (actual - expected).norm() / expected.norm()
            assert error < 1e-5, (contender, error)
    multiplications = batch * ins * outs * 9 * side**2
    work = {"calls": 1, "gflop": 6 * multiplications / 1e9}
    return Race(f"train_conv3x3, batch {batch}, {name}", device, work, contenders)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_train_conv3x3(benchmark, name, case, device, rounds):
    if why := dispatch.reason("native", device):
        pytest.skip(why)
    build_race(case, device).time(benchmark, name, rounds)
