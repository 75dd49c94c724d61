"""`langevin` on densities whose moments are known exactly."""

import math

import pytest
import torch
from torch import nn

from cdrl_fast import (
    BackendUnavailable,
    ChainDiverged,
    MLPEnergy,
    _extension,
    langevin,
    langevin_trace,
    normal,
)
from cdrl_fast.engine.sequential import program_of
from cdrl_fast.ops.mlp_chain import mlp_chain_


def gaussian(variance, mean=0.0):
    return lambda x: -0.5 * ((x - mean) ** 2).flatten(1).sum(1) / variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_follow_the_formula(dtype):
    energy = MLPEnergy(2, 16, (1, 2)).to(dtype).eval()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logsnr = torch.zeros(1, dtype=dtype)
    y, initial = x.clone(), x.clone()
    for step in range(4):
        y = y.requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(y, logsnr).sum(), y)
        z = normal((5, 2), seed=3, draw=2**31 + 7 + step, first_sample=11, dtype=dtype)
        y = y.detach() + 0.5 * 0.01 * gradient + math.sqrt(0.01) * z
    options = {"step_size": 0.01, "seed": 3, "first_sample": 11}
    actual = langevin(lambda v: energy(v, logsnr), x, steps=4, first_step=7, **options)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert (actual - y).abs().max() < tolerance
    assert torch.equal(x, initial)
    assert all(p.grad is None for p in energy.parameters())


@pytest.mark.parametrize("variance", [0.3, 2.5])
def test_stationary_variance_of_a_gaussian(variance):
    """For N(0, v) the chain is autoregressive: its variance is v / (1 - h / 4v) exactly."""
    h, n = 0.5 * variance, 20_000
    x = langevin(gaussian(variance, mean=1.0), torch.zeros(n, 2), steps=60, step_size=h, seed=5)
    expected = variance / (1 - h / (4 * variance))
    assert abs(x.mean() - 1.0) < 4 * math.sqrt(expected / (2 * n))
    assert abs(x.var() / expected - 1) < 4 * math.sqrt(2 / (2 * n))


def test_chains_split_and_continue():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    options = {"step_size": 0.1, "seed": 2**63}
    states = langevin_trace(gaussian(1.5), x, steps=6, **options)
    final = states[-1]
    halves = [
        langevin(gaussian(1.5), x[a:b], steps=6, first_sample=a, **options)
        for a, b in ((0, 4), (4, 10))
    ]
    assert torch.equal(torch.cat(halves), final)
    second = langevin(gaussian(1.5), x, steps=2, **options)
    assert torch.equal(langevin(gaussian(1.5), second, steps=4, first_step=2, **options), final)
    assert states.shape == (7, 10, 3)
    assert torch.equal(states[0], x)
    assert torch.equal(states[2], second)
    assert torch.equal(states[6], final)


def test_empty_batches_no_steps_and_views():
    assert langevin(gaussian(1.0), torch.zeros(0, 2), steps=3, step_size=0.1).shape == (0, 2)
    x = torch.randn(3, 8)[:, ::2]
    assert torch.equal(langevin(gaussian(1.0), x, steps=0, step_size=0.1), x)
    strided = langevin(gaussian(1.0), x, steps=1, step_size=0.1)
    assert torch.equal(strided, langevin(gaussian(1.0), x.contiguous(), steps=1, step_size=0.1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_grad_mode_and_leaves_no_graph(mode):
    expected = langevin(gaussian(1.0), torch.ones(2, 2), steps=2, step_size=0.1)
    with mode():
        x = langevin(gaussian(1.0), torch.ones(2, 2, requires_grad=True), steps=2, step_size=0.1)
    assert not x.requires_grad
    assert torch.equal(x, expected)


def test_a_module_is_frozen_during_the_call_only():
    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trainable = torch.nn.Parameter(torch.ones(2))
            self.fixed = torch.nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x):
            assert not self.trainable.requires_grad
            if x.abs().max() > 100:
                raise RuntimeError("too far")
            return -(self.trainable * self.fixed * x * x).sum(1)

    module = Quadratic()
    langevin(module, torch.ones(3, 2), steps=2, step_size=0.1)
    assert (module.trainable.requires_grad, module.fixed.requires_grad) == (True, False)
    with pytest.raises(RuntimeError, match="too far"):
        langevin(module, torch.full((3, 2), 1e6), steps=2, step_size=0.1)
    assert module.trainable.requires_grad


def test_backward_through_an_earlier_step_raises_instead_of_using_later_values():
    graphs = []

    def log_density(x):
        graphs.append((x**3).sum(1))
        return -(x**2).sum(1)

    langevin(log_density, torch.ones(3, 2), steps=2, step_size=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graphs[0].sum().backward()


def test_values_may_have_another_dtype_and_gradients_other_strides():
    weights = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))

    def transposed(x):
        return -(x.transpose(1, 2) ** 2 * weights.transpose(1, 2)).flatten(1).sum(1)

    def plain(x):
        return -(x**2 * weights).flatten(1).sum(1)

    x = torch.ones(4, 3, 2)
    options = {"steps": 3, "step_size": 0.1}
    expected = langevin(plain, x, **options)
    assert torch.equal(langevin(transposed, x, **options), expected)
    actual = langevin(lambda v: plain(v).double(), x, **options)
    assert (actual - expected).abs().max() < 1e-6


def test_divergence_names_step_and_chain():
    x = torch.tensor([[1.0], [1e30], [1.0]])
    message = r"chain 41 became non-finite \(NaN or Inf\) at step 9"
    with pytest.raises(ChainDiverged, match=message) as caught:
        langevin(lambda v: -(v**4).sum(1), x, steps=3, step_size=0.1, first_step=9, first_sample=40)
    assert (caught.value.step, caught.value.sample) == (9, 41)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step_size": 0.0}, ValueError, "step_size must be positive"),
        ({"step_size": float("nan")}, ValueError, "step_size must be positive"),
        ({"steps": -1}, ValueError, "steps must be in"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"first_step": 2**31 - 1, "steps": 2}, ValueError, "steps must be in"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"x": torch.zeros(2, 2).long()}, TypeError, "floating-point"),
        ({"x": torch.zeros(2, 2).half()}, TypeError, "float32 or float64"),
        ({"log_density": lambda x: x.sum()}, ValueError, "log_density must return one number per"),
        ({"log_density": lambda x: 0.5}, ValueError, "one number per chain, .* got float"),
        ({"log_density": lambda x: torch.zeros(2)}, ValueError, "does not depend on x"),
        ({"backend": "cuda"}, BackendUnavailable, "works on CUDA devices"),
    ],
)
def test_bad_arguments(change, error, message):
    options = {"x": torch.zeros(2, 2), "log_density": gaussian(1.0), "steps": 1, "step_size": 0.1}
    with pytest.raises(error, match=message):
        langevin(**(options | change))


def sequential(dim=2, seed=0):
    torch.manual_seed(seed)
    layers = (nn.Linear(dim, 24), nn.SiLU(), nn.Linear(24, 20), nn.Softplus(), nn.Linear(20, 1))
    return nn.Sequential(*layers, nn.Flatten(0))


@pytest.fixture
def compiled_calls(monkeypatch):
    """The options of each chain that runs in one compiled call."""
    if _extension.load() is None:
        pytest.skip("no compiled module")
    calls = []

    def recorded(*args, **options):
        calls.append(options)
        return mlp_chain_(*args, **options)

    monkeypatch.setattr("cdrl_fast.sampling.langevin.mlp_chain_", recorded)
    return calls


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_a_sequential_runs_in_one_call_and_agrees_with_autograd(dim, compiled_calls):
    energy, x = sequential(dim), torch.randn(50, dim, generator=torch.Generator().manual_seed(2))
    options = {"steps": 20, "step_size": 0.05, "seed": 4, "first_sample": 9, "first_step": 3}
    initial = x.clone()
    expected = langevin(lambda v: energy(v), x, **options)
    assert not compiled_calls
    for log_density in (energy, program_of(energy)):
        actual = langevin(log_density, x, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert not actual.requires_grad
    assert torch.equal(x, initial)
    assert len(compiled_calls) == 2
    assert all(p.requires_grad and p.grad is None for p in energy.parameters())


def test_when_a_sequential_is_left_to_autograd(compiled_calls):
    energy, x = sequential(), torch.ones(3, 2)
    options = {"steps": 4, "step_size": 0.05}
    states = langevin_trace(energy, x, **options)
    final = states[-1]
    assert torch.equal(states[-1], final)
    langevin(energy, x, backend="reference", **options)
    langevin(sequential().double(), x.double(), **options)
    langevin(program_of(sequential().double()), x.double(), **options)
    langevin(energy, x, steps=0, step_size=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        langevin(energy, x, **options)
    with pytest.raises(RuntimeError, match="shapes"):
        langevin(energy, torch.ones(3, 5), **options)
    with pytest.raises(RuntimeError, match="dtype"):
        langevin(sequential().double(), x, **options)
    assert not compiled_calls
    torch.testing.assert_close(langevin(energy, x, **options), final)
    assert len(compiled_calls) == 1


def test_compiled_chains_split_continue_and_use_changed_weights(compiled_calls):
    energy, x = sequential(), torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    options = {"step_size": 0.1, "seed": 3}
    final = langevin(energy, x, steps=6, **options)
    halves = [
        langevin(energy, x[a:b], steps=6, first_sample=a, **options) for a, b in ((0, 7), (7, 40))
    ]
    assert torch.equal(torch.cat(halves), final)
    second = langevin(energy, x, steps=2, **options)
    assert torch.equal(langevin(energy, second, steps=4, first_step=2, **options), final)
    with torch.no_grad():
        energy[0].weight.mul_(3.0)
    changed = langevin(energy, x, steps=6, **options)
    expected = langevin(lambda v: energy(v), x, steps=6, **options)
    assert (changed - final).abs().max() > 0.01
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


def test_divergence_of_a_compiled_chain_is_the_same_error(compiled_calls):
    energy = nn.Sequential(nn.Linear(1, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))
    x = torch.tensor([[1.0], [float("inf")], [1.0]])
    errors = []
    for log_density in (energy, lambda v: energy(v)):
        with pytest.raises(ChainDiverged) as caught:
            langevin(log_density, x, steps=3, step_size=0.1, first_step=9, first_sample=40)
        errors.append(caught.value)
    assert len(compiled_calls) == 1
    assert str(errors[0]) == str(errors[1])
    assert (errors[0].step, errors[0].sample) == (9, 41)
    for options in ({"seed": 2**64}, {"first_sample": -1}):
        with pytest.raises(ValueError, match="langevin: "):
            langevin(energy, x, steps=1, step_size=0.1, **options)
