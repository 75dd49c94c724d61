"""Chains of programs, against autograd, the reference and closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from cdrl_fast import BackendUnavailable, _extension, normal
from cdrl_fast.ops import Key, Phase, mlp_chain_
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.mlp_chain import (
    IDENTITY,
    Activation,
    Add,
    Linear,
    Program,
    value,
    value_and_gradient,
)
from cdrl_fast.ops.mlp_chain.program import KINDS

LEAKY = Activation("leaky_relu", 0.2)
ACTIVATIONS = [Activation(kind, 0.2 if kind == "leaky_relu" else 0.0) for kind in KINDS]
OPTIONS = {"steps": 3, "drift": 0.05, "pull": 0.1, "noise_std": 0.2, "seed": 5, "draw": 77}


def run_chain(
    program, y, anchor=None, *, steps, drift, pull, noise_std, rescale=1.0, seed=0, draw=0,
    first_sample=0, **options,
):  # fmt: skip
    """Run `mlp_chain_` on a phase whose first step has the number ``draw``."""
    phase = Phase(steps, drift, pull, noise_std, rescale, Key(seed, draw - 1, first_sample))
    return mlp_chain_(program, y, anchor, phase=phase, **options)


def layered(widths, activation=LEAKY, dtype=torch.float32, seed=0, rows=False):
    """Return linear maps with the activation before each except the first, and before the head."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    steps, column = [], 0
    for i, (ins, outs) in enumerate(pairwise(widths)):
        bias = slice(column, column + outs) if rows else 0.3 * random(outs)
        column += outs
        before = activation if i else IDENTITY
        steps.append(Linear(i, i + 1, random(outs, ins) / math.sqrt(ins), bias, before))
    return Program(tuple(widths), tuple(steps), random(widths[-1]), activation, 0.7)


def residual(dim, width, outs, dtype=torch.float32, activation=LEAKY):
    """Return a stem, a block with identity and one with shortcut; two maps read one buffer."""
    generator = torch.Generator().manual_seed(1)

    def linear(source, target, ins, outs, bias, before):
        weight = torch.randn(outs, ins, generator=generator, dtype=torch.float64) / math.sqrt(ins)
        if bias is None:
            bias = torch.randn(outs, generator=generator, dtype=torch.float64).to(dtype)
        return Linear(source, target, weight.to(dtype), bias, before)

    steps = (
        linear(0, 1, dim, width, None, IDENTITY),
        linear(1, 2, width, width, slice(3, 3 + width), activation),
        Add(1, 3),
        linear(2, 3, width, width, None, activation),
        linear(3, 4, width, outs, slice(0, outs), activation),
        linear(3, 5, width, outs, None, IDENTITY),
        linear(4, 5, outs, outs, None, activation),
        Add(5, 6),
    )
    widths = (dim, width, width, width, outs, outs, outs)
    head = torch.randn(outs, generator=generator, dtype=torch.float64).to(dtype)
    return Program(widths, steps, head, Activation("leaky_relu", 0.0))


def points(batch, dim, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator, dtype=torch.float64).to(dtype)


def random_rows(program, batch, dtype=torch.float32):
    return points(batch, program.rows, dtype, seed=4) if program.rows else None


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_value_and_gradient_are_autograds(activation):
    programs = [
        layered((3, 20, 33), activation, torch.float64),
        residual(4, 17, 21, torch.float64, activation),
        layered((5,), activation, torch.float64),
    ]
    for program in programs:
        y = points(50, program.dim, torch.float64).requires_grad_(True)
        rows = random_rows(program, 50, torch.float64)
        f = value(program, y, rows)
        (expected,) = torch.autograd.grad(f.sum(), y)
        actual, gradient = value_and_gradient(program, y, rows)
        assert (actual - f).abs().max() < 1e-12
        assert (gradient - expected).abs().max() < 1e-12


def test_the_formula_of_a_chain():
    program = residual(3, 8, 12, torch.float64)
    y, anchor = points(6, 3, torch.float64), points(6, 3, torch.float64, seed=9)
    rows, expected = random_rows(program, 1, torch.float64), points(6, 3, torch.float64)
    for k in range(3):
        _, gradient = value_and_gradient(program, expected, rows)
        z = normal((6, 3), seed=5, draw=77 + k, first_sample=40, dtype=torch.float64)
        moved = expected + 0.05 * gradient - 0.1 * (expected - anchor) + 0.2 * z
        expected = moved * (1.5 if k == 2 else 1.0)
    actual = run_chain(program, y, anchor, rows=rows, first_sample=40, rescale=1.5, **OPTIONS)
    assert actual is y
    assert (y - expected).abs().max() < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_activations(variant, activation):
    """Compare to float64 over all magnitudes: errors of a few roundings, no NaN."""
    y = torch.cat([torch.linspace(-30, 30, 5001), torch.logspace(-20, 38, 200)])
    y = torch.cat([y, -y])[:, None]
    one = torch.ones(1)
    program = Program((1,), (), one, activation)
    exact = Program((1,), (), one.double(), activation)
    actual = value_and_gradient(program, y, backend="native")
    expected = value_and_gradient(exact, y.double())
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 16, 17, 40])
@pytest.mark.parametrize("batch", [0, 1, 3, 100, 257])
def test_native_and_reference_agree(variant, dim, batch):
    smooth = Activation("silu")
    programs = [
        layered((dim, 128), smooth),
        layered((dim, 20, 33, 1), Activation("softplus"), rows=True),
        residual(dim, 19, 40, activation=Activation("tanh")),
    ]
    for program in programs:
        y, anchor, rows = (
            points(batch, dim),
            points(batch, dim, seed=8),
            random_rows(program, batch),
        )
        expected = value_and_gradient(program, y, rows, backend="reference")
        actual = value_and_gradient(program, y, rows, backend="native")
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
        options = {"rows": rows, "rescale": 1.25, "first_sample": 2**33, **OPTIONS}
        chain = [
            run_chain(program, y.clone(), anchor, backend=backend, **options)
            for backend in ("native", "reference")
        ]
        torch.testing.assert_close(*chain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_leaky_networks_agree_where_no_sign_flips(variant, precision):
    program = residual(2, 48, 64)
    y, rows = points(300, 2), random_rows(program, 1)
    f, gradient = value_and_gradient(program, y, rows, backend="reference")
    actual, slope = value_and_gradient(program, y, rows, precision=precision, backend="native")
    # bfloat16 has 8 bits; a product of k terms errs by about 2^-9 of its size.
    tolerance = 1e-5 if precision == "fp32" else 0.02
    scale = gradient.square().mean().sqrt()
    assert ((actual - f).abs() < tolerance * f.square().mean().sqrt() * 3).all()
    assert ((slope - gradient).abs().amax(1) < 3 * tolerance * scale).float().mean() > 0.8
    assert (slope - gradient).abs().median() < tolerance * scale


def test_bfloat16_keeps_nan(variant):
    """Check several NaN: rounding would turn a GPU's NaN into -0, others into infinity."""
    program = layered((2, 48, 48), Activation("silu"))
    y = points(5, 2)
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32)
    y[:4, 0] = bits.view(torch.float32)
    f, gradient = value_and_gradient(program, y, precision="bf16", backend="native")
    assert f[:4].isnan().all()
    assert gradient[:4].isnan().any(dim=1).all()
    assert f[4].isfinite()


def test_the_first_layer_and_the_last_gradient_keep_the_states_precision(variant):
    """Check that states which are equal in bfloat16 have different gradients."""
    program = layered((2, 64), Activation("silu"))
    y = torch.stack([torch.full((8,), 1.0), 1.0 + torch.arange(8) * 2.0**-12], dim=1)
    expected = value_and_gradient(program, y, backend="reference")
    actual = value_and_gradient(program, y, precision="bf16", backend="native")
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_sample_has_the_same_bits_in_any_batch(variant, precision, per_sample):
    program, n = residual(3, 48, 70), 257
    y, anchor = points(n, 3), points(n, 3, seed=8)
    rows = random_rows(program, n if per_sample else 1)
    coefficients = {"drift": 0.05, "pull": 0.1, "noise_std": 0.2, "rescale": 1.1}
    if per_sample:
        scale = torch.linspace(0.5, 1.5, n)
        coefficients = {name: c * scale for name, c in coefficients.items()}

    def part(begin, end):
        values = {k: c[begin:end] if per_sample else c for k, c in coefficients.items()}
        bias = rows[begin:end] if per_sample else rows
        return run_chain(
            program, y[begin:end].clone(), anchor[begin:end], steps=4, rows=bias, seed=1,
            draw=2**32 - 4, first_sample=begin, precision=precision, backend="native", **values,
        )  # fmt: skip

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        full = part(0, n)
        torch.set_num_threads(3)
        assert torch.equal(part(0, n), full)
    finally:
        torch.set_num_threads(threads)
    for cuts in ((0, 1, 2, 257), (0, 13, 100, 257), (0, 128, 256, 257)):
        parts = [part(a, b) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), full)


def test_per_sample_coefficients(variant):
    program = layered((2, 24), Activation("silu"))
    scale = torch.linspace(0.5, 1.5, 100)
    options = {**OPTIONS, "drift": 0.05 * scale, "pull": 0.1 * scale, "rescale": 2.0 * scale}
    chain = [
        run_chain(program, points(100, 2), points(100, 2, seed=8), backend=backend, **options)
        for backend in ("native", "reference")
    ]
    torch.testing.assert_close(*chain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_first_bad_is_the_earliest_step_then_sample(backend):
    if backend == "native" and _extension.load() is None:
        pytest.skip("no compiled module")
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    program = Program((2, 2), (Linear(0, 1, weight),), torch.ones(2), Activation("silu"))
    y = points(300, 2)
    y[211, 1], y[40, 0], y[290, 0] = 3e38, 1e30, float("nan")
    first_bad = torch.full((), NEVER)
    options = {"noise_std": 0.0, "pull": 0.0, "seed": 0, "draw": 2**32 - 3, "backend": backend}
    run_chain(program, y.clone(), steps=2, drift=3e38, first_bad=first_bad, **options)
    assert divmod(int(first_bad), 2**31) == (2**32 - 3, 211)
    y[211, 1], y[290, 0] = 0.0, 0.0
    first_bad.fill_(NEVER)
    run_chain(program, y.clone(), steps=3, drift=1e38, first_bad=first_bad, **options)
    draw, sample = divmod(int(first_bad), 2**31)
    assert draw > 2**32 - 3
    run_chain(program, points(9, 2), steps=3, drift=0.1, first_bad=first_bad, **options)
    assert divmod(int(first_bad), 2**31) == (draw, sample)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_moments_on_a_linear_energy(precision):
    """Compare moments for constant ∇f = c: an autoregressive chain with known mean and variance."""
    c = torch.tensor([0.8, -1.7])
    program = Program((2, 1), (Linear(0, 1, c[None]),), torch.ones(1))
    n, steps, drift, pull, std, rescale = 40_000, 12, 0.3, 0.15, 0.4, 1.3
    anchor = torch.tensor([1.0, -2.0]).expand(n, 2).contiguous()
    y = run_chain(
        program, torch.zeros(n, 2), anchor, steps=steps, drift=drift, pull=pull, noise_std=std,
        rescale=rescale, seed=11, draw=3, precision=precision,
    )  # fmt: skip
    a = 1 - pull
    mean = rescale * (drift * c + pull * anchor[0]) * (1 - a**steps) / (1 - a)
    variance = (rescale * std) ** 2 * (1 - a ** (2 * steps)) / (1 - a**2)
    assert ((y.mean(0) - mean).abs() < 4.5 * math.sqrt(variance / n)).all()
    assert ((y.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / n)).all()
    assert abs(torch.corrcoef(y.T)[0, 1]) < 4.5 / math.sqrt(n)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_key_on_a_device_is_read_and_stays(backend):
    if backend == "native" and _extension.load() is None:
        pytest.skip("no compiled module")
    program = layered((2, 24), Activation("silu"))
    options = {**OPTIONS, "pull": 0.0, "backend": backend}
    expected = run_chain(program, points(7, 2), **{**options, "seed": -5}, first_sample=9)
    seed, first_sample = torch.tensor(-5), torch.tensor(9)
    for _ in range(2):
        position = {"seed": seed, "first_sample": first_sample}
        assert torch.equal(run_chain(program, points(7, 2), **{**options, **position}), expected)
    assert (int(seed), int(first_sample)) == (-5, 9)


def test_fp16_is_unavailable_on_cpus():
    if _extension.load() is None:
        pytest.skip("no compiled module")
    program = layered((2, 24))
    with pytest.raises(BackendUnavailable, match="has a kernel only on CUDA devices"):
        value_and_gradient(program, points(3, 2), precision="fp16", backend="native")


def test_weights_that_change_are_packed_again():
    program = layered((2, 24), Activation("silu"))
    y = points(5, 2)
    before = value_and_gradient(program, y)[1]
    program.instructions[0].weight.mul_(2.0)
    after = value_and_gradient(program, y)[1]
    torch.testing.assert_close(after, value_and_gradient(program, y, backend="reference")[1])
    assert (after - before).abs().max() > 0.1


def test_views_shared_memory_and_versions():
    program, y = layered((3, 24), Activation("silu")), points(7, 3)
    options = {**OPTIONS, "pull": 0.0}
    expected = run_chain(program, y.clone(), y.clone(), **OPTIONS)
    wide = torch.full((7, 5), float("nan"))
    view = wide[:, 1:4]
    view.copy_(y)
    assert run_chain(program, view, y, **OPTIONS) is view
    assert torch.equal(view, expected)
    assert wide[:, 0].isnan().all()
    assert wide[:, 4].isnan().all()
    shifted = torch.zeros(22)[1:].view(7, 3)
    shifted.copy_(y)
    version = shifted._version
    run_chain(program, shifted, shifted, **OPTIONS)  # the anchor is the initial state
    assert torch.equal(shifted, expected)
    assert shifted._version > version
    assert torch.equal(run_chain(program, y.clone(), **{**options, "steps": 0}), y)
    with torch.inference_mode():
        inside = run_chain(program, y.clone(), y.clone(), **OPTIONS)
    assert torch.equal(inside, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": torch.zeros(4, 3)}, ValueError, r"y must be \(batch, 2\), got \(4, 3\)"),
        ({"y": torch.zeros(4, 2).half()}, TypeError, "y must be float32 or float64"),
        ({"y": torch.zeros(4, 2).double()}, TypeError, "program must be torch.float64 on cpu"),
        ({"y": torch.zeros(4, 2, requires_grad=True)}, ValueError, "must not require gradients"),
        ({"anchor": torch.zeros(4, 3)}, ValueError, r"anchor must have y's shape \(4, 2\)"),
        ({"anchor": torch.zeros(4, 2).double()}, TypeError, "anchor must be torch.float32"),
        ({"anchor": None}, ValueError, "without an anchor, pull must be 0.0"),
        ({"drift": torch.zeros(3)}, ValueError, r"drift must be a number or have shape \(4,\)"),
        ({"rows": None}, ValueError, r"rows must be \(1, 24\) or \(4, 24\), got None"),
        ({"rows": torch.zeros(2, 24)}, ValueError, "rows must be"),
        ({"rows": torch.zeros(1, 24).double()}, TypeError, "rows must be torch.float32"),
        ({"steps": -1}, ValueError, "steps must be in"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"draw": 2**32 - 2}, ValueError, r"draw \+ steps must be in"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"backend": "abacus"}, ValueError, "backend must be one of"),
        ({"backend": "cuda"}, BackendUnavailable, "works on CUDA devices"),
        ({"first_bad": torch.zeros(())}, TypeError, "first_bad must be int64"),
        ({"first_bad": torch.zeros(2).long()}, ValueError, "first_bad must have 1 elements"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_arguments(change, error, message):
    program = layered((2, 24), rows=True)
    values = {"y": torch.zeros(4, 2), "anchor": torch.zeros(4, 2), "rows": torch.zeros(1, 24)}
    values |= {**OPTIONS, **change}
    with pytest.raises(error, match=message):
        run_chain(program, values.pop("y"), values.pop("anchor"), **values)


@pytest.mark.parametrize(
    ("widths", "steps", "message"),
    [
        ((2, 3), (), "must read every buffer except the last"),
        (
            (2, 3),
            (Linear(0, 2, torch.zeros(3, 2)),),
            "buffers must be 0 to 1, got .* target 2",
        ),
        ((2, 3, 3), (Linear(1, 2, torch.zeros(3, 3)),), "reads buffer 1, which is not written"),
        ((2, 2), (Add(0, 1), Add(1, 0)), "writes buffer 0 after it was read"),
        ((2, 3), (Add(0, 1),), "adds 2 features to 3"),
        ((2, 3), (Linear(0, 1, torch.zeros(2, 3)),), r"weight must be \(3, 2\), got \(2, 3\)"),
        ((2, 3), (Linear(0, 1, torch.zeros(3, 2), torch.zeros(2)),), r"bias must be \(3,\)"),
        ((2, 3), (Linear(0, 1, torch.zeros(3, 2), slice(0, 2)),), "a slice of 3 columns"),
        ((0,), (), "widths must be positive"),
    ],
)
def test_bad_programs(widths, steps, message):
    with pytest.raises(ValueError, match=message):
        Program(widths, steps, torch.zeros(widths[-1]))
    with pytest.raises(ValueError, match="head must be"):
        Program((2,), (), torch.zeros(3))
    with pytest.raises(TypeError, match="one floating dtype"):
        Program((2, 1), (Linear(0, 1, torch.zeros(1, 2).double()),), torch.zeros(1))
    with pytest.raises(ValueError, match="kind must be one of"):
        Activation("gelu")
