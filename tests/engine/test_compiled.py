"""`compile=True`: the same samples, few compilations, and a clear error without a compiler."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from cdrl_fast import CDRL, BackendUnavailable, NoiseSchedule, Sampler, langevin, langevin_trace

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class Energy(nn.Module):
    classes = 3

    def __init__(self):
        super().__init__()
        self.stem, self.label = nn.Linear(2, 8), nn.Embedding(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, y, logsnr, label=None):
        h = F.silu(self.stem(y) * torch.cos(logsnr)[:, None])
        return self.head(h if label is None else h + self.label(label) * y[:, :1])[:, 0]


class Initializer(nn.Module):
    classes = 3

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 2)

    def forward(self, x, logsnr, label=None):
        return self.map(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CDRL(Energy(), Initializer(), NoiseSchedule(levels=3, steps=2), sample_shape=(2,))


def graphs():
    """Return the number of graphs compiled so far."""
    return counters["stats"]["unique_graphs"]


@needs_compiler
def test_sampler_compiles_a_users_networks_once(model):
    plain, fast = Sampler(model), Sampler(model, compile=True)
    before = graphs()
    first = fast.sample(64)
    assert graphs() == before + 2
    torch.testing.assert_close(first, plain.sample(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.sample(40), first[:40], rtol=0, atol=1e-5)
    with torch.no_grad():
        model.energy.stem.weight.mul_(3.0)
    changed = fast.sample(64)
    assert (changed - first).abs().max() > 1e-3
    torch.testing.assert_close(changed, plain.sample(64), rtol=0, atol=1e-5)
    assert graphs() == before + 2
    guided = {"n": 20, "label": [1, 2] * 10, "guidance": 0.5}
    torch.testing.assert_close(fast.sample(**guided), plain.sample(**guided), rtol=0, atol=1e-5)


@needs_compiler
def test_a_network_that_is_compiled_already(model):
    expected = Sampler(model, precision="fp64").sample(64)
    wrapped = copy.deepcopy(model)
    wrapped.energy = torch.compile(wrapped.energy)
    sampler = Sampler(wrapped, precision="fp64", compile=True)
    before = graphs()
    for n in (64, 40):
        torch.testing.assert_close(sampler.sample(n), expected[:n], rtol=0, atol=1e-9)
    assert graphs() == before + 2


@pytest.mark.slow
@needs_compiler
def test_half_precision_is_autocast_inside(model):
    samples = [Sampler(model, precision="bf16", compile=c).sample(64) for c in (False, True)]
    full = Sampler(model).sample(64)
    assert 1e-5 < (samples[1] - full).abs().max() < 0.05
    torch.testing.assert_close(*samples, rtol=0, atol=0.02)


def test_the_librarys_own_networks_are_not_compiled(point_model):
    before = graphs()
    samples = Sampler(point_model, compile=True).sample(5)
    assert torch.equal(samples, Sampler(point_model).sample(5))
    energy = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))
    langevin(energy, torch.zeros(5, 2), steps=2, step_size=0.1, compile=True, backend="auto")
    assert graphs() == before


@needs_compiler
def test_langevin_compiles_once():
    net = nn.Linear(2, 1)

    def follow(x, run=langevin, **options):
        # Each call creates another function with the same code.
        return run(lambda v: net(v).sin()[:, 0] - v.square().sum(1), x, steps=3,
                   step_size=0.1, **options)  # fmt: skip

    before = graphs()
    for batch in (64, 40):
        x = torch.randn(batch, 2, generator=torch.Generator().manual_seed(batch))
        actual = follow(x, compile=True)
        torch.testing.assert_close(actual, follow(x), rtol=0, atol=1e-5)
        assert not actual.requires_grad
        with torch.no_grad():
            net.weight.mul_(2.0)
    states = follow(x, langevin_trace, compile=True)
    assert torch.equal(states[-1], follow(x, compile=True))
    assert graphs() == before + 1
    assert net.weight.grad is None
    assert net.weight.requires_grad


@pytest.mark.slow
@needs_compiler
def test_many_energies_compile_each():
    """torch.compile compiles one code object only a limited number of times."""
    before = graphs()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for width in (2, 3, 4):
            x = torch.zeros(3, width)
            langevin(Scaled(width), x, steps=1, step_size=0.1, compile=True)
    assert graphs() == before + 3


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return (self.scale * x).sum(1)


def test_bad_energies_raise_before_compiling():
    x, before = torch.zeros(3, 2), graphs()
    for energy, message in (
        (lambda v: v.sum(), "one number per chain"),
        (lambda v: v.detach().sum(1), "does not depend on x differentiably"),
    ):
        with pytest.raises(ValueError, match=message):
            langevin(energy, x, steps=1, step_size=0.1, compile=True)
    langevin(lambda v: v.sum(), x, steps=0, step_size=0.1, compile=True)
    assert graphs() == before


def test_without_a_compiler(model):
    from torch._inductor import config

    options = {"steps": 1, "step_size": 0.1, "compile": True}
    with config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}):
        with pytest.raises(BackendUnavailable, match=r"compile=True: torch.compile failed on cpu"):
            langevin(lambda v: v.pow(3).sum(1), torch.zeros(3, 2), **options)
        with pytest.raises(BackendUnavailable, match=r"No working C\+\+ compiler"):
            Sampler(model, compile=True).sample(3)
