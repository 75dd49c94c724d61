"""3×3 convolutions with what follows them: torch's own (cuDNN) and passes, and our dispatch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race, signs_differ
from torch.nn import functional as F

from cdrl_fast.ops import dispatch
from cdrl_fast.ops.conv3x3 import conv3x3
from cdrl_fast.ops.sign_bits import pack

# Size and channels, batch 64, as in the paper's network; one small batch.
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
    """One block's residual convolution there, or its gradient back, in half precision."""

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
        """What follows the convolution; the signs as booleans, as torch has them."""
        if self.back:
            return self.residual + torch.where(self.positive, y, 0.2 * y)
        h = torch.where(self.residual > 0, self.residual, 5 * self.residual)
        y = y + self.row.half() + h
        return torch.where(y > 0, y, 0.2 * y), y > 0


@pytest.fixture(autouse=True, scope="module")
def fastest_algorithms():
    """cuDNN measures which of its algorithms is the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


@cache
def race(name, use, device):
    """Each contender's result is checked before it is timed."""
    batch, size, channels = CASES[name]
    exact = Problem(use, batch, size, channels, device)
    expected = exact.ours("reference")
    compiled = torch.compile(lambda p: p.passes(p.convolution()))
    found = {
        "convolution alone": Problem.convolution,
        "eager": lambda p: p.passes(p.convolution()),
        "compiled": compiled,
        "cudnn": lambda p: p.ours("cudnn"),
        "triton": lambda p: p.ours("triton"),
    }
    gflop = 18 * batch * size**2 * channels**2 / 1e9
    made = Race(f"conv3x3 {use}, {name}", device, {"calls": INNER, "gflop": INNER * gflop})
    for contender, run in found.items():
        own = Problem(use, batch, size, channels, device)
        got = run(own)
        got, positive = got if isinstance(got, tuple) else (got, None)
        if contender != "convolution alone":
            torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
        if use == "forward" and contender != "convolution alone":
            signs = own.signs_out if positive is None else pack(positive)
            # Rounded to half precision before its sign is taken.
            assert signs_differ(signs, exact.signs_out) < 1e-2, contender
        made.contenders[contender] = lambda run=run, own=own: [run(own) for _ in range(INNER)]
    return made


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", NAMES)
def test_conv3x3(benchmark, name, use, case, device, rounds):
    if why := dispatch.reason("triton", device):
        pytest.skip(why)
    race(case, use, device).time(benchmark, name, rounds)
