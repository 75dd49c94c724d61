"""Benchmark of an energy network's input gradient: autograd, hand-tuned PyTorch, and ours.

A second race times classifier-free guidance: two labels as one batch, and one after the other.
"""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from race import Race, batch_of

from cdrl_fast import CDRL, ResNetEnergy
from cdrl_fast.cli.bench import folded
from cdrl_fast.engine import Terms, frozen_energy
from cdrl_fast.engine.terms import combined, weighted
from cdrl_fast.networks.spectral_norm import fix_weights
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.precision import fast_bfloat16, resolve
from cdrl_fast.training.flops import flop_of

# Network, image size, batch.
CASES = {
    "paper's network, 32×32, batch 8": (lambda: ResNetEnergy(), 32, 8),
    "paper's network, 32×32, batch 512": (lambda: ResNetEnergy(), 32, 512),
    "width 32, 28×28, batch 64": (lambda: ResNetEnergy(1, 32, (1, 2, 2), 2), 28, 64),
    "digits, 8×8, batch 64": (lambda: CDRL.from_pretrained("digits").energy, 8, 64),
}
# CPUs that emulate bfloat16 are slower in it than in float32.
PRECISIONS = {
    "cpu": ("fp32", "bf16") if fast_bfloat16() else ("fp32",),
    "cuda": ("fp32", "tf32", "bf16", "fp16"),
}
GUIDED = {
    "paper's network, 32×32, batch 8": (lambda: ResNetEnergy(classes=10), 32, 8),
    "paper's network, 32×32, batch 64": (lambda: ResNetEnergy(classes=10), 32, 64),
    **{
        f"digits, 8×8, batch {batch}": (lambda: CDRL.from_pretrained("digits").energy, 8, batch)
        for batch in (1, 8, 64)
    },
}
GUIDED_NAMES = ("eager", "ours, two passes", "ours, one batch")
WEIGHTS = (2.0, -1.0)
OURS = tuple(f"ours, {name}" for name in PRECISIONS["cuda"])
NAMES = ("eager", "eager, ieee", "hand-tuned", "compiled", *OURS)
COMPILED = "width 32, 28×28, batch 64"
"""The only case that also compiles the hand-tuned network, which takes half a minute."""


def autograd(network, y, logsnr, label):
    y = y.detach().requires_grad_(True)
    value = network(y, logsnr, label)
    return torch.autograd.grad(value, y, torch.ones_like(value))[0]


def half_autograd(network, y, logsnr, label):
    with torch.autocast(y.device.type, torch.bfloat16):
        return autograd(network, y, logsnr, label)


def compiled(network, logsnr, label):
    """Return the hand-tuned gradient with forward and backward compiled as one graph."""
    gradient = torch.compile(torch.func.grad(lambda y: network(y, logsnr, label).sum()))

    @torch.no_grad()
    def run(y):
        with torch.autocast(y.device.type, torch.bfloat16):
            return gradient(y)

    return run


def in_ieee(run):
    """Return a call of ``run`` with convolutions in float32, which PyTorch computes in TF32."""

    def call():
        with fp32_precision("ieee", matmul=True):
            return run()

    return call


@cache
def build_race(name, device):
    """Return the race; each contender's gradient is checked against float64 first."""
    build, size, batch = CASES[name]
    batch = batch_of(batch)
    torch.manual_seed(0)
    energy = build().to(device).eval().requires_grad_(False)
    y = torch.randn(batch, energy.stem.in_channels, size, size, device=device)
    logsnr = torch.full((1,), 1.0, device=device)
    label = torch.ones(1, dtype=torch.long, device=device) if energy.num_classes else None
    exact = autograd(energy.double(), y[:2].double(), logsnr.double(), label)
    energy = energy.float()
    fix_weights(energy)
    half = folded(energy).to(torch.bfloat16).to(memory_format=torch.channels_last)
    channels_last = y.to(memory_format=torch.channels_last)
    contenders = {
        "eager": lambda: autograd(energy, y, logsnr, label),
        "hand-tuned": lambda: half_autograd(half, channels_last, logsnr, label),
    }
    if device.type == "cuda":
        contenders["eager, ieee"] = in_ieee(contenders["eager"])
    if name == COMPILED:
        contenders["compiled"] = partial(compiled(half, logsnr, label), channels_last)
    for precision in PRECISIONS[device.type]:
        frozen = frozen_energy(
            energy, device=device, precision=resolve(precision, device, has_kernels=True)
        )
        at_level = frozen.at(logsnr, Terms(labels=(label,)))
        contenders[f"ours, {precision}"] = partial(at_level.gradient, y)
    # Forward and backward; the embeddings, computed once per batch, are negligible.
    flop = 2 * flop_of(partial(energy, y[:1], logsnr, label))
    work = {"gradients": batch, "gflop": batch * flop / 1e9}
    race = Race(f"energy gradient, {name}", device, work, contenders)
    for contender, run in contenders.items():
        error = (run()[:2] - exact).norm() / exact.norm()
        race.notes[contender] = {"gradient_relative_error": float(error)}
        # Half precision and TF32, PyTorch's default on GPUs, flip the signs of small activations; a
        # wrong gradient errs by 1.
        is_exact = contender in ("eager, ieee", "ours, fp32")
        is_exact = is_exact or (contender == "eager" and device.type == "cpu")
        assert error < (1e-2 if is_exact else 0.3), (contender, error)
    return race


@cache
def build_guided_race(name, device):
    build, size, batch = GUIDED[name]
    batch = batch_of(batch)
    torch.manual_seed(0)
    energy = build().to(device).eval().requires_grad_(False)
    y = torch.randn(batch, energy.stem.in_channels, size, size, device=device)
    logsnr = torch.full((1,), 1.0, device=device)
    labels = tuple(torch.tensor([label], device=device) for label in (1, 0))
    precision = "fp16" if device.type == "cuda" else "fp32"
    frozen = frozen_energy(
        energy, device=device, precision=resolve(precision, device, has_kernels=True)
    )
    one = frozen.at(logsnr, Terms(WEIGHTS, labels))
    two = weighted(WEIGHTS, [frozen.at(logsnr, Terms(labels=(label,))) for label in labels])

    def eager():
        return combined(WEIGHTS, [autograd(energy, y, logsnr, label) for label in labels])

    runs = (eager, partial(two.gradient, y), partial(one.gradient, y))
    contenders = dict(zip(GUIDED_NAMES, runs, strict=True))
    flop = 2 * len(labels) * flop_of(partial(energy, y[:1], logsnr, labels[0]))
    work = {"gradients": batch, "gflop": batch * flop / 1e9}
    expected = eager()
    for contender, run in contenders.items():
        error = (run() - expected).norm() / expected.norm()
        assert error < (0.3 if precision == "fp16" else 1e-2), (contender, error)
    return Race(f"guided gradient, {name}", device, work, contenders)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_energy_gradient(benchmark, name, case, device, rounds):
    if name == "compiled" and case != COMPILED:
        pytest.skip(f"compiled only for {COMPILED}")
    if CASES[case][2] > 64 and device.type == "cpu":
        pytest.skip("so large a batch is for GPUs")
    if name.startswith("ours, ") and name[6:] not in PRECISIONS[device.type]:
        pytest.skip(f"this precision is not timed on {device.type}")
    if name == "eager, ieee" and device.type == "cpu":
        pytest.skip("on CPUs eager computes in IEEE float32 already")
    build_race(case, device).time(benchmark, name, rounds)


@pytest.mark.parametrize("case", GUIDED)
@pytest.mark.parametrize("name", GUIDED_NAMES)
def test_guided_gradient(benchmark, name, case, device, rounds):
    if GUIDED[case][1] > 8 and device.type == "cpu":
        pytest.skip("so large a network is for GPUs")
    build_guided_race(case, device).time(benchmark, name, rounds)
