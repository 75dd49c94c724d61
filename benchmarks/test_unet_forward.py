"""The initializer's forward pass in float32: the module, compiled by torch, and ours."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from race import Race

from cdrl_fast import CDRL, UNetInitializer
from cdrl_fast.engine.initializer import initializer_plan
from cdrl_fast.precision import resolve

# Network, batch.
CASES = {
    "digits, 8×8, batch 64": (lambda: CDRL.from_pretrained("digits").initializer, 64),
    "width 32, 28×28, batch 64": (lambda: UNetInitializer(1, 28, 32, (1, 1), 1, (14,)), 64),
}
NAMES = ("eager", "compiled", "ours")


@cache
def race(name, device):
    """Each contender's output is checked against float64's before it is timed."""
    build, batch = CASES[name]
    torch.manual_seed(0)
    network = build().to(device).eval().requires_grad_(False)
    size = network.config["image_size"]
    with torch.no_grad():  # off the zeros of a fresh network
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    x = torch.randn(batch, network.stem.in_channels, size, size, device=device)
    logsnr = torch.full((1,), 1.0, device=device)
    label = torch.ones(1, dtype=torch.long, device=device) if network.num_classes else None
    exact = network.double()(x[:2].double(), logsnr.double(), label)
    network = network.float()
    compiled = torch.compile(network)
    plan = initializer_plan(network, device=device, precision=resolve("fp32", device, planned=True))
    found = {
        "eager": lambda: network(x, logsnr, label),
        "compiled": lambda: compiled(x, logsnr, label),
        "ours": lambda: plan.forward(x, *plan.conditions(logsnr, label)),
    }
    made = Race(
        f"initializer, {name}",
        device,
        {"proposals": batch, "gflop": batch * gigaflops(network, x)},
        found,
    )
    for contender, run in found.items():
        error = (run()[:2] - exact).norm() / exact.norm()
        made.notes[contender] = {"relative_error": float(error)}
        assert error < 1e-5, (contender, error)
    return made


def gigaflops(network, x):
    """Of one sample's convolutions, counted while the module runs."""
    products = 0

    def count(layer, _, out):
        nonlocal products
        products += layer.weight.numel() * out.shape[2] * out.shape[3]

    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(x[:1], torch.zeros(1, device=x.device))
    for hook in hooks:
        hook.remove()
    return 2 * products / 1e9


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.split(",")[0])
@pytest.mark.parametrize("name", NAMES)
def test_unet_forward(benchmark, name, case, device, rounds):
    race(case, device).time(benchmark, name, rounds)
