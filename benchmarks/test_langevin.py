"""Benchmark of complete chains of Langevin dynamics on 2-D densities, against related libraries.

`pip install torchebm==0.8.9 ebmkit==0.16.0` installs the related libraries; without them their
rows are skipped.
"""

from __future__ import annotations

import importlib
import math
from functools import cache

import pytest
import torch
from race import Race
from torch import nn

from cdrl_fast import langevin

STEPS = 200
STEP_SIZE = 0.02
NAMES = ("eager", "compiled", "torchebm", "ebmkit", "ours")
PACKAGES = {"torchebm": "torchebm", "ebmkit": "ebm"}


class Gaussian(nn.Module):
    """The energy of N(0, diag(1, 4)) times ``sign``; -1 makes it the log-density."""

    def __init__(self, sign=1):
        super().__init__()
        self.factor = 0.5 * sign
        self.register_buffer("precision", torch.tensor([1.0, 0.25]))

    def forward(self, x):
        return self.factor * (x * x * self.precision).sum(1)


def network(sign=1):
    """Return a random two-layer network times ``sign``.

    Its density is not normalisable, which does not matter within 200 small steps.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 1), nn.Flatten(0))
    with torch.no_grad():
        net[2].weight *= sign
        net[2].bias *= sign
    return net


def gradient(energy, x):
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(energy(x).sum(), x)[0]


def eager(energy, x):
    """Run the chain as a plain loop, as in a tutorial."""
    for _ in range(STEPS):
        noise = math.sqrt(STEP_SIZE) * torch.randn_like(x)
        x = x - 0.5 * STEP_SIZE * gradient(energy, x) + noise
    return x


def compiled(energy, x):
    """Return the same chain with compiled energy, frozen parameters and in-place updates."""
    fast, x = torch.compile(energy.requires_grad_(False)), x.clone()

    def chain():
        for _ in range(STEPS):
            x.add_(gradient(fast, x), alpha=-0.5 * STEP_SIZE)
            x.add_(torch.randn_like(x), alpha=math.sqrt(STEP_SIZE))
        return x

    return chain


def with_torchebm(energy, x):
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self):
            super().__init__(device=x.device)
            self.energy = energy

        def forward(self, x):
            return self.energy(x)

    sampler = LangevinDynamics(Model(), step_size=0.5 * STEP_SIZE, device=x.device)
    return lambda: sampler.sample(x=x, n_steps=STEPS)


def with_ebmkit(energy, x):
    from ebm.samplers import LangevinDynamics

    sampler = LangevinDynamics(step_size=0.5 * STEP_SIZE, steps=STEPS)
    return lambda: sampler.sample(energy, x)


@cache
def build_race(kind, batch, device):
    """Return the race; each contender's moments after a chain from a common start are checked."""
    x = 2.0 * torch.randn(batch, 2, generator=torch.Generator().manual_seed(0)).to(device)
    make = {"gaussian": Gaussian, "network": network}[kind]
    energy, log_density = make().to(device), make(sign=-1).to(device)
    contenders = {
        "eager": lambda: eager(energy, x),
        "compiled": compiled(make().to(device), x),
        "ours": lambda: langevin(log_density, x, steps=STEPS, step_size=STEP_SIZE, seed=1),
    }
    for name, build in (("torchebm", with_torchebm), ("ebmkit", with_ebmkit)):
        if importlib.util.find_spec(PACKAGES[name]):
            contenders[name] = build(make().to(device), x)
    _check(contenders, batch)
    work = {"steps": STEPS, "batch": batch}
    return Race(f"langevin {kind}, batch {batch}", device, work, contenders)


def _check(contenders, batch):
    """Check that all means and variances agree with eager's within five standard errors."""
    expected = contenders["eager"]()
    for name, run in contenders.items():
        actual = run().detach()
        assert actual.shape == expected.shape
        spread = expected.var(0)
        assert (
            (actual.mean(0) - expected.mean(0)).abs() < 5 * (2 * spread / batch).sqrt()
        ).all(), name
        assert ((actual.var(0) / spread).log().abs() < 5 * math.sqrt(4 / batch)).all(), name


@pytest.mark.parametrize("batch", [64, 2500])
@pytest.mark.parametrize("kind", ["gaussian", "network"])
@pytest.mark.parametrize("name", NAMES)
def test_langevin(benchmark, name, kind, batch, device, rounds):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    build_race(kind, batch, device).time(benchmark, name, rounds)
