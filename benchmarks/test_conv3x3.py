"""Benchmark of 3×3 convolutions with their epilogues: torch (cuDNN) in several passes, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, signs_differ
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.conv3x3 import conv3x3
from cdrl_fast.ops.sign_bits import pack

# Batch, size and channels, as in the paper's network; the last has a small batch.
CASES = {
    "64×32×32, 128 channels": (64, 32, 128),
    "64×16×16, 256 channels": (64, 16, 256),
    "64×8×8, 256 channels": (64, 8, 256),
    "64×4×4, 256 channels": (64, 4, 256),
    "1×32×32, 128 channels": (1, 32, 128),
}
USES = ("forward", "gradient")
NAMES = ("convolution alone", "eager", "compiled", "cudnn", "triton")
INNER = 20


class Problem:
    """One block's residual convolution, forward or for the gradient, in half precision."""

    def __init__(self, use, batch, size, channels, device):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape, scale=1.0):
            return (scale * torch.randn(shape, generator=generator)).to(device)

        shape, pixels = (batch, size, size, channels), batch * size * size
        self.back = use == "gradient"
        self.x, self.residual = draw(*shape).half(), draw(*shape).half()
        self.weight = draw(9, channels, channels, scale=(9 * channels) ** -0.5).half()
        self.row = draw(1, channels)
        self.positive = draw(pixels, channels) > 0
        self.signs = pack(self.positive)
        self.positive = self.positive.view(shape)
        filters = self.weight.view(3, 3, channels, channels).permute(3, 2, 0, 1)
        self.filters = filters.contiguous(memory_format=torch.channels_last)
        self.out = torch.empty_like(self.x)
        self.signs_out = torch.empty_like(self.signs)

    def ours(self, backend):
        if self.back:
            options = {"transposed": True, "signs": self.signs}
        else:
            options = {"row": self.row, "residual_activated": True, "activate": True,
                       "signs_out": self.signs_out}  # fmt: skip
        return conv3x3(
            self.x, self.weight, residual=self.residual, out=self.out, backend=backend, **options
        )

    def convolution(self):
        convolve = F.conv_transpose2d if self.back else F.conv2d
        return convolve(self.x.permute(0, 3, 1, 2), self.filters, padding=1).permute(0, 2, 3, 1)

    def passes(self, y):
        """Compute the epilogue of the convolution in torch, with booleans as signs."""
        if self.back:
            return self.residual + torch.where(self.positive, y, 0.2 * y)
        h = torch.where(self.residual > 0, self.residual, 5 * self.residual)
        y = y + self.row.half() + h
        return torch.where(y > 0, y, 0.2 * y), y > 0


@pytest.fixture(autouse=True, scope="module")
def fastest_algorithms():
    """Let cuDNN choose its fastest algorithms by timing them."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


@cache
def build_race(name, use, device):
    """Return the race; each contender's result is checked first."""
    batch, size, channels = CASES[name]
    exact = Problem(use, batch, size, channels, device)
    expected = exact.ours("reference")
    compiled = torch.compile(lambda p: p.passes(p.convolution()))
    contenders = {
        "convolution alone": Problem.convolution,
        "eager": lambda p: p.passes(p.convolution()),
        "compiled": compiled,
        "cudnn": lambda p: p.ours("cudnn"),
        "triton": lambda p: p.ours("triton"),
    }
    gflop = 18 * batch * size**2 * channels**2 / 1e9
    race = Race(f"conv3x3 {use}, {name}", device, {"calls": INNER, "gflop": INNER * gflop})
    for contender, run in contenders.items():
        own = Problem(use, batch, size, channels, device)
        actual = run(own)
        actual, positive = actual if isinstance(actual, tuple) else (actual, None)
        if contender != "convolution alone":
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
        if use == "forward" and contender != "convolution alone":
            signs = own.signs_out if positive is None else pack(positive)
            # The output is rounded to half precision before torch takes its sign.
            assert signs_differ(signs, exact.signs_out) < 1e-2, contender
        race.contenders[contender] = lambda run=run, own=own: [run(own) for _ in range(INNER)]
    return race


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NAMES)
def test_conv3x3(benchmark, name, use, case, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    build_race(case, use, device).time(benchmark, name, rounds)
