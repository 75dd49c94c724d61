"""Metropolis-adjusted Langevin dynamics (MALA), which is exact where plain steps are biased."""

import json
import math
import sys

import diagnostics
import numpy as np
import pytest
import torch
from gaussians import GaussianMixture, model_of

from cdrl_fast import ChainDiverged, Sampler, StepPlan, langevin, langevin_trace
from cdrl_fast.engine import Context, EnergyAt
from cdrl_fast.ops.keys import Key
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.phase import Phase
from cdrl_fast.sampling.transitions import Adjusted

VARIANCE = 0.7


def gaussian(x):
    return -0.5 * x.double().square().sum(1) / VARIANCE


def plain_variance(step):
    """Return the stationary variance of x ← (1 - h/2v) x + √h z."""
    keep = 1 - step / (2 * VARIANCE)
    return step / (1 - keep**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variance_is_exact_at_a_large_step(dtype):
    step, n = 1.5, 20_000
    x = torch.zeros(n, 1, dtype=dtype)
    error = 4 * math.sqrt(2 / n)
    biased = langevin(gaussian, x, steps=60, step_size=step).var()
    assert abs(biased / plain_variance(step) - 1) < error
    assert plain_variance(step) / VARIANCE - 1 > 10 * error
    exact = langevin(gaussian, x, steps=60, step_size=step, metropolis=True)
    assert exact.dtype == dtype
    assert abs(exact.var() / VARIANCE - 1) < error
    assert abs(exact.mean()) < 4 * math.sqrt(VARIANCE / n)


class Energy(EnergyAt):
    """An energy of a function that returns value and gradient."""

    def __init__(self, function):
        self.value_and_gradient = function

    value_and_gradient = None


def value_and_gradient(y):
    return -0.5 * y.square().sum(1) / VARIANCE, -y / VARIANCE


def take_steps_(
    y, anchor=None, *, step, pull=0.0, steps=1, rescale=1.0, reject=True, draw=0, after_step=None,
    function=value_and_gradient,
):  # fmt: skip
    """Take adjusted steps of y and return the acceptance probabilities."""
    phase = Phase(steps, 0.5 * step, pull, math.sqrt(step), rescale, Key(0, draw, 0))
    first_bad, recorded = torch.full((), NEVER, dtype=torch.int64), []
    transition = Adjusted(reject, recorded.append)
    context = Context(first_bad, after_step=after_step, per_step=True)
    transition(Energy(function), y, anchor, phase, context)
    return recorded[0]


def density(x, mean, variance):
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("pull", [0.0, 0.3])
def test_acceptance_against_numerical_integration(pull):
    """E[min(1, …)] from one fixed state, with and without a recovery term."""
    step, start, anchor, n = 0.8, 0.9, -0.4, 100_000
    y = torch.full((n, 1), start, dtype=torch.float64)
    anchors = torch.full_like(y, anchor)
    probabilities = take_steps_(y, anchors, step=step, pull=pull, reject=False)[0]

    def log_target(x):
        return -0.5 * x**2 / VARIANCE - pull * (x - anchor) ** 2 / step

    def proposal_mean(x):
        return x - 0.5 * step * x / VARIANCE - pull * (x - anchor)

    x = np.linspace(-8, 8, 200_001)
    forward = density(x, proposal_mean(start), step)
    backward = density(start, proposal_mean(x), step)
    ratio = np.exp(log_target(x) - log_target(start)) * backward / forward.clip(1e-300)
    expected = (np.minimum(1, ratio) * forward).sum() * (x[1] - x[0])
    assert 0.3 < expected < 0.95
    assert abs(probabilities.mean() - expected) < 4 * probabilities.std() / math.sqrt(n)


def test_without_adjustment_the_chain_is_plain_langevin():
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    expected = langevin(lambda y: value_and_gradient(y)[0], x, steps=5, step_size=0.4)
    y = x.clone()
    calls = []
    probabilities = take_steps_(
        y, step=0.4, steps=5, reject=False, draw=2**31 - 1, after_step=calls.append
    )
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    assert probabilities.shape == (5, 7)
    assert calls == [1, 2, 3, 4, 5]
    assert ((probabilities > 0) & (probabilities <= 1)).all()


def test_rescaling_follows_the_last_step():
    y, scaled = torch.ones(4, 2), torch.ones(4, 2)
    take_steps_(y, step=0.5, steps=3)
    take_steps_(scaled, step=0.5, steps=3, rescale=2.0)
    torch.testing.assert_close(scaled, 2 * y)


def test_a_rejected_chain_stays_and_nan_is_rejected():
    def cliff(y):
        value = -0.5 * y.square().sum(1)
        return torch.where(y[:, 0] > 0, value, torch.full_like(value, float("nan"))), -y

    y = torch.full((200, 1), 0.1)
    before = y.clone()
    probabilities = take_steps_(y, step=0.2, function=cliff)[0]
    assert (y > 0).all()
    stayed = (y == before)[:, 0]
    assert 20 < stayed.sum() < 180
    assert (probabilities[~stayed] > 0).all()


def test_a_non_finite_initial_state_is_an_error():
    """Otherwise the chain would reject every proposal and stay there without an error."""
    x = torch.zeros(3, 2)
    x[1, 0] = float("nan")
    with pytest.raises(ChainDiverged, match=r"chain 1 became non-finite \(NaN or Inf\) at step 0"):
        langevin(gaussian, x, steps=3, step_size=0.1, metropolis=True)


def test_chains_do_not_depend_on_their_batch():
    x = torch.linspace(-2, 2, 12)[:, None]
    options = {"step_size": 0.9, "metropolis": True, "seed": 5}
    final = langevin(gaussian, x, steps=8, **options)
    states = langevin_trace(gaussian, x, steps=8, **options)
    assert states.shape == (9, 12, 1)
    assert torch.equal(states[-1], final)
    tail = langevin(gaussian, x[5:], steps=8, first_sample=5, **options)
    assert torch.equal(tail, final[5:])
    third = langevin(gaussian, x, steps=3, **options)
    continued = langevin(gaussian, third, steps=5, first_step=3, **options)
    assert torch.equal(continued, final)


def test_bad_arguments():
    with pytest.raises(ValueError, match="leave compile out"):
        langevin(gaussian, torch.zeros(1, 1), steps=1, step_size=1, metropolis=True, compile=True)
    with pytest.raises(ValueError, match="one number per chain"):
        langevin(lambda x: x.sum(), torch.zeros(2, 1), steps=1, step_size=1, metropolis=True)


def test_adjusted_correctors_are_exact_where_plain_ones_are_biased():
    """Correctors at level 1 with a noise of 1.4 standard deviations per step."""
    model = model_of(GaussianMixture([[1.0, -2.0]], [0.5]))
    n = 1000
    level = model.schedule.level(1)
    v = model.schedule.alpha_bar[0] * 0.25 + model.schedule.noise_variance[0]
    multiplier = 1.4 * level.scale * v**0.5 / level.noise_std
    plan = StepPlan((1,) * 6, (multiplier,) + (1.0,) * 5)
    plain = Sampler(model).sample(n, steps=plan, correctors=80).var(dim=0).mean()
    exact = Sampler(model).sample(n, steps=plan, correctors=80, metropolis=True).var(dim=0).mean()
    error = 4 / n**0.5
    assert plain / v - 1 > 3 * error
    assert abs(exact / v - 1) < error


def test_traces_contain_acceptance_probabilities(image_model):
    sampler = Sampler(image_model, precision="fp32")
    plain = sampler.sample(5, steps=3, correctors=2, seed=1)
    trace = sampler.sample_trace(5, steps=3, correctors=2, seed=1, trace="steps", batch_size=2)
    samples = trace.samples
    torch.testing.assert_close(samples, plain, rtol=0, atol=1e-5)
    assert trace.acceptance.shape == (6, 5)
    assert ((trace.acceptance > 0) & (trace.acceptance <= 1)).all()
    assert sampler.sample_trace(2, steps=1).acceptance is None
    assert (
        Sampler(image_model, precision="bf16").sample_trace(2, steps=1, trace="steps").acceptance
        is None
    )


def test_a_larger_step_is_accepted_less_often():
    model = model_of(GaussianMixture([[1.0, -2.0]], [0.5]))
    rates = [
        Sampler(model).sample_trace(200, steps=k, trace="steps").acceptance.mean(dim=1)
        for k in (15, 4)
    ]
    assert (rates[0] > rates[1]).all()


def test_adjusted_chains_of_a_sampler_do_not_depend_on_their_batch(image_model):
    sampler = Sampler(image_model, precision="fp32")
    options = {"steps": 3, "metropolis": True, "correctors": 1, "seed": 2}
    samples = sampler.sample(6, **options)
    assert torch.equal(sampler.sample(6, batch_size=4, **options), samples)
    assert torch.equal(sampler.sample(2, first_sample=4, **options), samples[4:])


def test_half_precision_cannot_be_adjusted(image_model):
    with pytest.raises(ValueError, match="energies in bf16 cannot be compared"):
        Sampler(image_model, precision="bf16").sample(1, metropolis=True)


def test_the_diagnostics_example(tmp_path, monkeypatch, capsys):
    options = ["--n", "10", "--steps", "4", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["diagnostics.py", *options])
    diagnostics.main()
    diagnostic = json.loads((tmp_path / "diagnostics.json").read_text())
    acceptance = diagnostic["acceptance"]
    plain, adjusted = acceptance["4"], acceptance["4, Metropolis"]
    for t in "23456":
        assert acceptance["2"][t] < plain[t] <= 1
        assert abs(adjusted[t] - plain[t]) < 0.2
    assert [len(level) for level in diagnostic["median_gain"]["plain"]] == [5] * 6
    assert (tmp_path / "diagnostics.png").exists()
    assert "| 4, Metropolis |" in capsys.readouterr().out
