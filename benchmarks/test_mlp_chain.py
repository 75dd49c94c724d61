"""Benchmark of one level of the 2-D model: 15 steps, in eager mode, compiled, and ours."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast import MLPEnergy, NoiseSchedule, normal
from cdrl_fast.engine.folding.energy import fold_mlp
from cdrl_fast.networks.spectral_norm import fix_weights
from cdrl_fast.ops import Key, Phase, mlp_chain_
from cdrl_fast.reference import input_gradient

BATCH = 2500
LEVEL = 3
NAMES = ("eager", "compiled", "ours")


def frozen(device):
    """Return the energy with constant weights, as in a good eager implementation."""
    torch.manual_seed(0)
    network = MLPEnergy()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    network.eval().requires_grad_(False).to(device)
    fix_weights(network)
    return network


def chain(energy, x, level, noise):
    """Run the level's steps from ``x``, with gradients by autograd."""
    logsnr, y = torch.full((1,), level.logsnr, device=x.device), x
    for k in range(1, level.steps + 1):
        gradient = input_gradient(lambda v: energy(v, logsnr), y)
        y = y + level.drift * gradient - level.pull * (y - x) + level.noise_std * noise(k)
    return y / (level.scale + 1e-8)


def autocast(energy):
    """Return the energy with matrix products in bfloat16."""

    def run(y, logsnr):
        with torch.autocast(y.device.type, torch.bfloat16):
            return energy(y, logsnr).float()

    return run


def ours(x, level, precision):
    folded = fold_mlp(frozen(x.device), x.device, torch.float32)
    rows = folded.at(torch.full((1,), level.logsnr, device=x.device), None)

    rescale = 1.0 / (level.scale + 1e-8)
    phase = Phase(level.steps, level.drift, level.pull, level.noise_std, rescale, Key(1, 0))

    def run():
        return mlp_chain_(folded.program, x.clone(), x, phase=phase, rows=rows, precision=precision)

    return run


@cache
def build_race(precision, device):
    """Return the race; in bf16 "compiled" also uses bfloat16, while "eager" is always float32."""
    level = NoiseSchedule().level(LEVEL)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0)).to(device)
    plain, fast = frozen(device), frozen(device)
    fast = torch.compile(fast if precision == "fp32" else autocast(fast))

    def random(k):
        return torch.randn_like(x)

    contenders = {
        "eager": lambda: chain(plain, x, level, random),
        "compiled": lambda: chain(fast, x, level, random),
        "ours": ours(x, level, precision),
    }
    expected = chain(plain, x, level, lambda k: normal(x.shape, seed=1, draw=k, device=device))
    _check(contenders, expected, 1e-5 if precision == "fp32" else 1e-2)
    weights = sum(
        w.weight.numel() for w in fold_mlp(plain, x.device, torch.float32).program.linears
    )
    # One multiplication and one addition per weight, forward and again for the gradient.
    work = {"steps": level.steps, "batch": BATCH, "gflop": 4e-9 * weights * level.steps * BATCH}
    return Race(f"2-D chain {precision}, batch {BATCH}", x.device, work, contenders)


def _check(contenders, expected, tolerance):
    """Check our samples against the reference, and all moments within five standard errors."""
    spread = expected.var(0)
    for name, run in contenders.items():
        actual = run()
        if name == "ours":
            difference = (actual - expected).abs().amax(1) / spread.sqrt().mean()
            assert difference.median() < tolerance
        assert (
            (actual.mean(0) - expected.mean(0)).abs() < 5 * (2 * spread / BATCH).sqrt()
        ).all(), name
        assert ((actual.var(0) / spread).log().abs() < 5 * math.sqrt(4 / BATCH)).all(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_mlp_chain(benchmark, name, precision, device, rounds):
    build_race(precision, device).time(benchmark, name, rounds)
