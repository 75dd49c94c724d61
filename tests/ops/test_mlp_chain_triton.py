"""The chain's Triton kernel, in triton's interpreter or on a GPU, against the reference."""

import dataclasses

import pytest
import torch
from torch import nn

from cdrl_fast import langevin, normal
from cdrl_fast.ops import mlp_chain_
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.mlp_chain import (
    Activation,
    Add,
    Linear,
    Program,
    value_and_gradient,
)
from cdrl_fast.ops.mlp_chain.lowering import program_shape, schedule
from cdrl_fast.ops.mlp_chain.triton_weights import PackedWeights
from tests.ops.test_mlp_chain import (
    ACTIVATIONS,
    OPTIONS,
    layered,
    points,
    random_rows,
    residual,
    run_chain,
)

TANH = Activation("tanh")
PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.gpu)]
# Relative to the size of what is compared; a product of k terms errs by about a rounding.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}


@pytest.fixture
def device(triton_device):
    return triton_device


def on_device(program, device):
    """Return the program with its tensors on a device."""

    def put(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    steps = tuple(
        dataclasses.replace(step, weight=put(step.weight), bias=put(step.bias))
        if isinstance(step, Linear)
        else step
        for step in program.instructions
    )
    return dataclasses.replace(program, instructions=steps, head=put(program.head))


def crossed(dim):
    """Return a program with sums of four parts and two activations of one buffer.

    A sum and linear maps read the state.
    """
    generator = torch.Generator().manual_seed(6)

    def linear(source, target, activation):
        weight = torch.randn(dim, dim, generator=generator) / dim**0.5
        return Linear(source, target, weight, 0.1 * weight[0], activation)

    silu, leaky = Activation("silu"), Activation("leaky_relu", 0.3)
    steps = (
        linear(0, 1, TANH),
        Add(0, 2),
        linear(1, 2, silu),
        linear(0, 3, Activation()),
        Add(1, 3),
        Add(2, 3),
        Add(0, 3),
        linear(2, 3, leaky),
        linear(1, 4, TANH),
        linear(3, 4, silu),
        Add(3, 4),
    )
    return Program((dim,) * 5, steps, torch.randn(dim, generator=generator), silu, -0.4)


def close(actual, expected, precision="fp32"):
    size = expected.abs().max().clamp(min=0.5)
    assert (actual - expected).abs().max() < TOLERANCES[precision] * size


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_activations(device, activation):
    """Compare to float64 over all magnitudes: errors of a few roundings, no NaN."""
    y = torch.cat([torch.linspace(-30, 30, 250), torch.logspace(-20, 38, 50)])
    y = torch.cat([y, -y])[:, None].to(device)
    program = Program((1,), (), torch.ones(1, device=device), activation)
    exact = dataclasses.replace(program, head=program.head.double())
    actual = value_and_gradient(program, y, backend="triton")
    for a, b in zip(actual, value_and_gradient(exact, y.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize(
    ("dim", "batch", "precision"),
    [
        pytest.param(1, 33, "fp32", marks=pytest.mark.slow),
        pytest.param(2, 1, "fp32", marks=pytest.mark.slow),
        pytest.param(5, 33, "fp32", marks=pytest.mark.slow),
        (33, 2, "fp32"),
        (2, 33, "fp16"),
        pytest.param(5, 1, "fp16", marks=pytest.mark.slow),
        pytest.param(5, 33, "bf16", marks=pytest.mark.gpu),
    ],
)
def test_backends_agree(device, dim, batch, precision):
    programs = [
        # Two tiles of features, the second incomplete, and one of a single feature.
        layered((dim, 150, 1), Activation("silu"), rows=True),
        # Smooth: at a kink half precision may have the other slope.
        dataclasses.replace(residual(dim, 19, 40, activation=TANH), activation=TANH),
        crossed(dim),
    ]
    programs = [on_device(program, device) for program in programs]
    for program in programs:
        y, anchor = points(batch, dim).to(device), points(batch, dim, seed=8).to(device)
        rows = random_rows(program, 1 if dim == 1 else batch)
        rows = rows if rows is None else rows.to(device)
        expected = value_and_gradient(program, y, rows, backend="reference")
        actual = value_and_gradient(program, y, rows, precision=precision, backend="triton")
        for a, b in zip(actual, expected, strict=True):
            close(a, b, precision)
        steps = 2 if program is programs[0] else 1
        options = {"rows": rows, "rescale": 1.25, "first_sample": 2**33, **OPTIONS, "steps": steps}
        chain = [
            run_chain(program, y.clone(), anchor, precision=p, backend=backend, **options)
            for backend, p in (("triton", precision), ("reference", "fp32"))
        ]
        close(*chain, precision)


def test_leaky_networks_and_coefficients_per_sample(device):
    program, n = on_device(residual(2, 33, 40), device), 35
    scale = torch.linspace(0.5, 1.5, n, device=device)
    options = {**OPTIONS, "drift": 0.05 * scale, "pull": 0.1 * scale, "rescale": 2.0 * scale}
    y, anchor = points(n, 2).to(device), points(n, 2, seed=8).to(device)
    options["rows"] = random_rows(program, n).to(device)
    chain = [
        run_chain(program, y.clone(), anchor, backend=backend, **options)
        for backend in ("triton", "reference")
    ]
    close(*chain)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_rounds_products_but_not_the_state(device, precision):
    """Check that states which are equal in half precision have different gradients."""
    program = on_device(layered((2, 40), Activation("silu")), device)
    y = torch.stack([torch.full((8,), 1.0), 1.0 + torch.arange(8) * 2.0**-14], dim=1).to(device)
    expected = value_and_gradient(program, y, backend="reference")
    actual = value_and_gradient(program, y, precision=precision, backend="triton")
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    deep = on_device(layered((2, 40, 40), Activation("silu")), device)
    _, gradient = value_and_gradient(deep, y, backend="reference")
    _, rounded = value_and_gradient(deep, y, precision=precision, backend="triton")
    error = (rounded - gradient).abs().max() / gradient.abs().max()
    assert (error > 1e-5) == (precision != "fp32")


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize(
    ("precision", "per_sample"),
    [
        pytest.param("fp32", False, marks=pytest.mark.slow),
        ("fp16", True),
        pytest.param("fp32", True, marks=pytest.mark.slow),
        pytest.param("fp16", False, marks=pytest.mark.slow),
        pytest.param("bf16", False, marks=pytest.mark.gpu),
        pytest.param("bf16", True, marks=pytest.mark.gpu),
    ],
)
def test_a_sample_has_the_same_bits_in_any_batch(device, precision, per_sample, monkeypatch):
    """Compare bits, with more blocks than programs and with NaN as initial memory."""
    slots = PackedWeights.slots
    monkeypatch.setattr(
        PackedWeights, "slots", lambda *arguments: slots(*arguments).fill_(float("nan"))
    )
    program, n = on_device(residual(3, 20, 17), device), 65
    y, anchor = points(n, 3).to(device), points(n, 3, seed=8).to(device)
    rows = random_rows(program, n if per_sample else 1).to(device)
    scale = torch.linspace(0.5, 1.5, n, device=device) if per_sample else torch.ones(n)

    def part(begin, end):
        values = {"drift": 0.05, "pull": 0.1, "noise_std": 0.2, "rescale": 1.1}
        if per_sample:
            values = {name: c * scale[begin:end] for name, c in values.items()}
        return run_chain(
            program, y[begin:end].clone(), anchor[begin:end], steps=2, seed=1, draw=2**32 - 2,
            rows=rows[begin:end] if per_sample else rows, first_sample=begin, precision=precision,
            backend="triton", **values,
        )  # fmt: skip

    full = part(0, n)
    assert full.isfinite().all()
    # Each sample has another position in its block, also the first block's last one.
    assert torch.equal(part(31, n), full[31:])


@pytest.mark.parametrize("dim", [1, 2, 37])
def test_noise_equals_the_stream_to_the_bit(device, dim):
    program = on_device(layered((dim, 8)), device)
    y = torch.zeros(35, dim, device=device)
    position = {"seed": 2**64 - 7, "draw": 2**31 + 5, "first_sample": 2**40}
    run_chain(
        program, y, steps=1, drift=0.0, pull=0.0, noise_std=1.0, backend="triton", **position
    )  # fmt: skip
    assert torch.equal(y, normal((35, dim), device=device, backend="triton", **position))


def test_a_key_on_a_device_is_read_and_stays(device):
    program = on_device(layered((2, 24), Activation("silu")), device)
    options = {**OPTIONS, "pull": 0.0, "backend": "triton"}
    start, first_sample = points(70, 2).to(device), torch.tensor(2**40, device=device)
    expected = run_chain(program, start.clone(), first_sample=2**40, **options)
    for _ in range(2):
        y = run_chain(program, start.clone(), first_sample=first_sample, **options)
        assert torch.equal(y, expected)
    assert int(first_sample) == 2**40


def test_first_bad_is_the_earliest_step_then_sample(device):
    weight = torch.eye(2, device=device)
    program = Program((2, 2), (Linear(0, 1, weight),), torch.ones(2, device=device), TANH)
    y = points(70, 2).to(device)
    first_bad = torch.full((), NEVER, device=device)
    options = {"drift": 0.1, "pull": 0.0, "noise_std": 0.0, "seed": 0, "draw": 2**32 - 2}
    options |= {"steps": 2, "backend": "triton", "first_bad": first_bad}
    run_chain(program, y.clone(), **options)
    assert int(first_bad) == NEVER
    y[61, 1], y[40, 0] = float("inf"), float("nan")
    after = run_chain(program, y.clone(), **options)
    assert divmod(int(first_bad), 2**31) == (2**32 - 2, 40)
    assert after.isfinite().all(dim=1).sum() == 68  # the other samples stay finite
    # Infinite only at the last step's rescaling.
    y[61, 1], y[40, 0] = 1e30, 0.0
    first_bad.fill_(NEVER)
    run_chain(program, y, rescale=1e30, **options)
    assert divmod(int(first_bad), 2**31) == (2**32 - 1, 61)


def test_odd_memory_and_its_borders(device):
    """Use misaligned, sliced and shared tensors; nothing outside the state is written."""
    program = on_device(layered((3, 24), Activation("silu")), device)
    options = {**OPTIONS, "backend": "triton"}
    x = points(7, 3).to(device)
    expected = run_chain(program, x.clone(), x, **options)
    for view in (slice(1, 22), slice(0, 42, 2)):
        memory = torch.full((44,), float("nan"), device=device)
        y = memory[view].view(7, 3) if view.step is None else memory[:42].view(7, 6)[:, ::2]
        y.copy_(x)
        version = y._version
        assert run_chain(program, y, y, **options) is y
        assert torch.equal(y, expected)
        assert y._version > version
        assert memory.isnan().sum() == 44 - 21
    with torch.inference_mode():
        assert torch.equal(run_chain(program, x.clone(), x.clone(), **options), expected)
    assert run_chain(program, x[:0], **{**options, "pull": 0.0}).shape == (0, 3)


def test_an_anchor_in_the_states_memory(device):
    """Use an anchor whose last block is in memory that the first block writes."""
    program = on_device(layered((3, 24), Activation("silu")), device)
    options = {**OPTIONS, "backend": "triton"}
    memory = points(72, 3).to(device)
    expected = run_chain(program, memory[32:].clone(), memory[:40].clone(), **options)
    assert torch.equal(run_chain(program, memory[32:], memory[:40], **options), expected)


def test_torchs_default_dtype_does_not_matter(device, request):
    program = on_device(layered((2, 24), Activation("silu")), device)
    y = points(5, 2).to(device)
    options = {**OPTIONS, "pull": 0.0, "precision": "fp16", "backend": "triton"}
    expected = run_chain(program, y.clone(), **options)
    request.getfixturevalue("double_by_default")
    assert torch.equal(run_chain(program, y.clone(), **options), expected)


def test_weights_that_change(device):
    program = on_device(layered((2, 24), Activation("silu")), device)
    y, options = points(5, 2).to(device), {**OPTIONS, "pull": 0.0, "backend": "triton"}
    run_chain(program, y.clone(), **options)
    program.instructions[0].weight.mul_(2.0)
    program.head.mul_(1.5)
    expected = run_chain(program, y.clone(), **{**options, "backend": "reference"})
    close(run_chain(program, y.clone(), **options), expected)


def test_leaky_networks_store_one_bit_per_activation():
    """Check that the memory of each layer is at most that."""
    shapes = [program_shape(layered((2, *[256] * depth))) for depth in (4, 12)]
    short, long = (schedule(shape, True, False).workspace for shape in shapes)
    assert long - short <= 8 * 256 // 32


def test_langevin_runs_sequences_compiled(device, monkeypatch):
    calls = []

    def counted(*args, **options):
        calls.append(options["backend"])
        return mlp_chain_(*args, **options)

    monkeypatch.setattr("cdrl_fast.sampling.langevin.mlp_chain_", counted)
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(2, 24), nn.SiLU(), nn.Linear(24, 1), nn.Flatten(0)).to(device)
    options = {"steps": 3, "step_size": 0.05, "seed": 4, "first_sample": 9, "backend": "triton"}
    x = points(5, 2).to(device)
    actual = langevin(energy, x, **options)
    close(actual, langevin(lambda v: energy(v), x, **options))
    assert calls == ["triton"]
    wide = nn.Sequential(nn.Linear(2, 1025), nn.Linear(1025, 1), nn.Flatten(0)).to(device)
    langevin(wide, x, **{**options, "steps": 1})
    assert calls == ["triton"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_captured_chain_draws_new_noise_each_time(precision):
    """Capture a chain, without synchronisation, and compare its replays to calls."""
    device = torch.device("cuda", 0)
    program = on_device(residual(2, 128, 256), device)
    rows, start = random_rows(program, 1).to(device), points(1000, 2).to(device)
    first_sample = torch.zeros((), dtype=torch.int64, device=device)
    first_bad = torch.full((), NEVER, device=device)
    options = {"steps": 3, "drift": 0.05, "pull": 0.1, "noise_std": 0.2, "rows": rows, "seed": 3}
    options |= {"precision": precision, "backend": "triton", "first_bad": first_bad, "draw": 5}
    y, anchor = start.clone(), start.clone()
    run_chain(program, y, anchor, first_sample=first_sample, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            run_chain(program, y, anchor, first_sample=first_sample, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    y.copy_(start)
    expected = start.clone()
    for first in (0, 1000, 5):
        first_sample.fill_(first)
        graph.replay()
        run_chain(program, expected, anchor, first_sample=first, **options)
        assert torch.equal(y, expected)
    assert int(first_bad) == NEVER
