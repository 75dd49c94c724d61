"""Benchmark of one Langevin update with noise: PyTorch, hand-tuned PyTorch, and our backends."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast.ops import dispatch, langevin_step, langevin_step_, normal
from cdrl_fast.ops.langevin_step import BACKENDS

SIZES = [
    pytest.param((256, 3, 32, 32), id="256"),
    pytest.param((16384, 3, 32, 32), id="16384", marks=pytest.mark.paper),
]
NAMES = ("eager", "eager in place", "compiled", "copy", "native", "cuda", "triton")
RNG = (1, 2, 0)
COEFFICIENTS = {"drift": 1e-3, "pull": 1e-3, "noise_std": 0.1}


class Buffers:
    """The arrays of one contender, so that no contender profits from another's cached data."""

    def __init__(self, shape, device, coefficients):
        generator = torch.Generator().manual_seed(0)
        x, grad, anchor = torch.randn((3, *shape), generator=generator).to(device)
        self.x, self.grad, self.anchor = x, grad, anchor
        self.noise = torch.empty_like(self.x)
        tail = [1] * (len(shape) - 1)
        self.coefficients = {
            name: value.reshape(-1, *tail) if isinstance(value, torch.Tensor) else value
            for name, value in coefficients.items()
        }


def plain(b, noise):
    c = b.coefficients
    drift, pull = c["drift"] * b.grad, c["pull"] * (b.x - b.anchor)
    return b.x + drift - pull + c["noise_std"] * noise(b.x)


def in_place(b, noise):
    """Update x in the fewest passes of eager PyTorch, with preallocated noise."""
    noise(b.noise)
    c = b.coefficients
    if isinstance(c["pull"], float):
        b.x.lerp_(b.anchor, c["pull"]).add_(b.grad, alpha=c["drift"])
        return b.x.add_(b.noise, alpha=c["noise_std"])
    b.x.lerp_(b.anchor, c["pull"]).addcmul_(b.grad, c["drift"])
    return b.x.addcmul_(b.noise, c["noise_std"])


@cache
def build_race(shape, per_sample, device):
    """Return the race; each contender is checked against the reference backend first."""
    values = dict(COEFFICIENTS)
    if per_sample:
        scale = torch.linspace(0.5, 1.0, shape[0], device=device)
        values = {name: value * scale for name, value in values.items()}
    fixed = normal(shape, seed=1, draw=2, device=device)
    start = Buffers(shape, device, values)
    reference = langevin_step(
        start.x, start.grad, start.anchor, rng=RNG, backend="reference", **values
    )
    compiled = torch.compile(plain)
    inner = 20 if device.type == "cuda" else 10
    elements = start.x.numel()
    group = f"langevin_step {shape[0]}×3×32×32{', a coefficient a sample' if per_sample else ''}"
    race = Race(group, device, {"updates": inner, "elements": elements})

    def add(name, run, check):
        error = (check(Buffers(shape, device, values)) - reference).abs().max()
        assert error < 1e-5, f"{name} differs from the reference by {error}"
        buffers = Buffers(shape, device, values)
        race.contenders[name] = lambda: [run(buffers) for _ in range(inner)]

    add("eager", lambda b: plain(b, torch.randn_like), lambda b: plain(b, lambda x: fixed))
    add(
        "eager in place",
        lambda b: in_place(b, torch.Tensor.normal_),
        lambda b: in_place(b, lambda z: z.copy_(fixed)),
    )
    add("compiled", lambda b: compiled(b, torch.randn_like), lambda b: compiled(b, lambda x: fixed))
    for backend in BACKENDS[:-1]:
        if dispatch.reason(backend, device) is None:
            options = {"rng": RNG, "backend": backend, **values}

            def step(b, options=options):
                return langevin_step_(b.x, b.grad, b.anchor, **options)

            add(backend, step, step)
    # A copy of 16 bytes per element, read and written, moves as much memory as the update.
    source = torch.randn(2 * elements, device=device)
    target = torch.empty_like(source)
    race.contenders["copy"] = lambda: [target.copy_(source) for _ in range(inner)]
    return race


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("per_sample", [False, True], ids=["numbers", "per-sample"])
@pytest.mark.parametrize("name", NAMES)
def test_langevin_step(benchmark, name, shape, per_sample, device, rounds):
    if name in BACKENDS and (why := dispatch.reason(name, device)):
        pytest.skip(why)
    build_race(shape, per_sample, device).time(benchmark, name, rounds)
