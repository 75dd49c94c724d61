"""Benchmark of the initializer's forward pass: PyTorch, compiled, hand-tuned, and ours."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from race import Race, batch_of

from cdrl_fast import CDRL, UNetInitializer
from cdrl_fast.engine.select import frozen_initializer
from cdrl_fast.precision import resolve
from cdrl_fast.sampling.chain_graph import capture

# Network, batch.
CASES = {
    "digits, 8×8, batch 64": (lambda: CDRL.from_pretrained("digits").initializer, 64),
    "width 32, 28×28, batch 64": (lambda: UNetInitializer(1, 28, 32, (1, 1), 1, (14,)), 64),
    "paper's network, 32×32, batch 512": (lambda: UNetInitializer(), 512),
}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "bf16", "fp16")}
CONTENDERS = {
    "cpu": ("eager", "compiled", "ours, fp32"),
    "cuda": (
        "eager", "compiled", "hand-tuned", *(f"ours, {name}" for name in PRECISIONS["cuda"]),
        "ours, fp16, graph",
    ),
}  # fmt: skip


def hand_tuned(network):
    """Return the network in half precision, channels-last and compiled."""
    compiled = torch.compile(network)

    def run(x, logsnr, label):
        with torch.autocast(x.device.type, torch.float16):
            return compiled(x.to(memory_format=torch.channels_last), logsnr, label)

    return run


def ours(network, precision, device, x, logsnr, label):
    frozen = frozen_initializer(
        network, device=device, precision=resolve(precision, device, has_kernels=True)
    )
    return lambda: frozen.forward(x, *frozen.level_inputs(logsnr, label))


def replayed(network, device, x, logsnr, label):
    """Return the pass as a captured chain runs it, with precomputed level inputs."""
    frozen = frozen_initializer(
        network, device=device, precision=resolve("fp16", device, has_kernels=True)
    )
    level_inputs, out = frozen.level_inputs(logsnr, label), torch.empty_like(x)
    replay = capture(lambda: out.copy_(frozen.forward(x, *level_inputs)), device)

    def run():
        replay()
        return out

    return run


@cache
def build_race(name, device):
    """Return the race; each contender's output is checked against float64 first."""
    build, batch = CASES[name]
    batch = batch_of(batch)
    torch.manual_seed(0)
    network = build().to(device).eval().requires_grad_(False)
    size = network.config["image_size"]
    with torch.no_grad():  # a new network has zeros, which would hide errors
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    x = torch.randn(batch, network.stem.in_channels, size, size, device=device)
    logsnr = torch.full((1,), 1.0, device=device)
    label = torch.ones(1, dtype=torch.long, device=device) if network.num_classes else None
    exact = network.double()(x[:2].double(), logsnr.double(), label)
    network, inputs = network.float(), (x, logsnr, label)
    compiled = torch.compile(network)
    contenders = {
        "eager": lambda: network(*inputs),
        "compiled": lambda: compiled(*inputs),
    }
    for precision in PRECISIONS[device.type]:
        contenders[f"ours, {precision}"] = ours(network, precision, device, *inputs)
    if device.type == "cuda":
        half = hand_tuned(copy.deepcopy(network).to(memory_format=torch.channels_last))
        contenders["hand-tuned"] = lambda: half(*inputs)
        contenders["ours, fp16, graph"] = replayed(network, device, *inputs)
    race = Race(
        f"initializer, {name}",
        device,
        {"proposals": batch, "gflop": batch * gigaflops(network, x)},
        contenders,
    )
    for contender, run in contenders.items():
        error = (run()[:2] - exact).norm() / exact.norm()
        race.notes[contender] = {"relative_error": float(error)}
        # Torch's convolutions on GPUs round float32 to TF32.
        is_float32 = device.type == "cpu" or contender == "ours, fp32"
        assert error < (1e-5 if is_float32 else 3e-2), (contender, error)
    return race


def gigaflops(network, x):
    """Return the GFLOP of one sample's convolutions, counted in a forward pass."""
    multiplications = 0

    def count(layer, _, out):
        nonlocal multiplications
        multiplications += layer.weight.numel() * out.shape[2] * out.shape[3]

    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(x[:1], torch.zeros(1, device=x.device))
    for hook in hooks:
        hook.remove()
    return 2 * multiplications / 1e9


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.split(",")[0])
@pytest.mark.parametrize("name", CONTENDERS["cuda"])
def test_unet_forward(benchmark, name, case, device, rounds):
    if name not in CONTENDERS[device.type]:
        pytest.skip(f"not timed on {device.type}")
    if CASES[case][1] > 64 and device.type == "cpu":
        pytest.skip("so large a batch is for GPUs")
    with torch.no_grad():
        build_race(case, device).time(benchmark, name, rounds)
