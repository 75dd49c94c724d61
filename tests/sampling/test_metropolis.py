"""Metropolis-adjusted Langevin dynamics: exact where plain Langevin is not."""

import json
import math
import sys

import diagnostics
import numpy as np
import pytest
import torch
from gaussians import GaussianMixture, model_of

from cdrl_fast import ChainDiverged, Sampler, StepPlan, langevin
from cdrl_fast.sampling.metropolis import adjusted_steps_

VARIANCE = 0.7


def gaussian(x):
    return -0.5 * x.double().square().sum(1) / VARIANCE


def plain_variance(step):
    """Of x ← (1 - h/2v) x + √h z."""
    keep = 1 - step / (2 * VARIANCE)
    return step / (1 - keep**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variance_is_right_whatever_the_step(dtype):
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


def both(y):
    return -0.5 * y.square().sum(1) / VARIANCE, -y / VARIANCE


def places(purpose):
    return lambda k: (0, purpose * 2**24 + k, 0)


def walk(y, anchor=None, *, step, pull=0.0, steps=1, **options):
    return adjusted_steps_(
        both, y, anchor, steps=steps, drift=0.5 * step, pull=pull, noise_std=math.sqrt(step),
        noise=places(0), acceptance=places(3), **options,
    )  # fmt: skip


def density(x, mean, variance):
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("pull", [0.0, 0.3])
def test_acceptance_against_numerical_integration(pull):
    """E[min(1, ...)] from one fixed state, with and without a recovery term."""
    step, start, anchor, n = 0.8, 0.9, -0.4, 100_000
    y = torch.full((n, 1), start, dtype=torch.float64)
    told = walk(y, torch.full_like(y, anchor), step=step, pull=pull, adjust=False)[0]

    def log_target(x):
        return -0.5 * x**2 / VARIANCE - pull * (x - anchor) ** 2 / step

    def proposed(x):
        return x - 0.5 * step * x / VARIANCE - pull * (x - anchor)

    x = np.linspace(-8, 8, 200_001)
    forth = density(x, proposed(start), step)
    back = density(start, proposed(x), step)
    ratio = np.exp(log_target(x) - log_target(start)) * back / forth.clip(1e-300)
    expected = (np.minimum(1, ratio) * forth).sum() * (x[1] - x[0])
    assert 0.3 < expected < 0.95
    assert abs(told.mean() - expected) < 4 * told.std() / math.sqrt(n)


def test_only_telling_leaves_the_chain_alone():
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    wanted = langevin(lambda y: both(y)[0], x, steps=5, step_size=0.4)
    y = x.clone()
    seen = []
    found = adjusted_steps_(
        both, y, None, steps=5, drift=0.2, pull=0.0, noise_std=math.sqrt(0.4), adjust=False,
        noise=lambda k: (0, 2**31 + k - 1, 0), acceptance=places(3), each=seen.append,
    )  # fmt: skip
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)
    assert found.shape == (5, 7)
    assert seen == [1, 2, 3, 4, 5]
    assert ((found > 0) & (found <= 1)).all()


def test_rescaling_follows_the_last_step():
    y, scaled = torch.ones(4, 2), torch.ones(4, 2)
    walk(y, step=0.5, steps=3)
    walk(scaled, step=0.5, steps=3, rescale=2.0)
    torch.testing.assert_close(scaled, 2 * y)


def test_a_refused_step_stays_and_nan_is_refused():
    def cliff(y):
        value = -0.5 * y.square().sum(1)
        return torch.where(y[:, 0] > 0, value, torch.full_like(value, float("nan"))), -y

    y = torch.full((200, 1), 0.1)
    before = y.clone()
    found = adjusted_steps_(
        cliff, y, None, steps=1, drift=0.1, pull=0.0, noise_std=math.sqrt(0.2),
        noise=places(0), acceptance=places(3),
    )[0]  # fmt: skip
    assert (y > 0).all()
    stayed = (y == before)[:, 0]
    assert 20 < stayed.sum() < 180
    assert (found[~stayed] > 0).all()


def test_a_start_that_is_no_number_is_an_error():
    """Each of its proposals would be refused, and the chain would stand there in silence."""
    x = torch.zeros(3, 2)
    x[1, 0] = float("nan")
    with pytest.raises(ChainDiverged, match="chain 1 left the finite numbers at step 0"):
        langevin(gaussian, x, steps=3, step_size=0.1, metropolis=True)


def test_chains_do_not_depend_on_their_batch():
    x = torch.linspace(-2, 2, 12)[:, None]
    options = {"step_size": 0.9, "metropolis": True, "seed": 5}
    whole, states = langevin(gaussian, x, steps=8, trace=True, **options)
    assert states.shape == (9, 12, 1)
    assert torch.equal(states[-1], whole)
    part = langevin(gaussian, x[5:], steps=8, first_sample=5, **options)
    assert torch.equal(part, whole[5:])
    half = langevin(gaussian, x, steps=3, **options)
    again = langevin(gaussian, half, steps=5, first_step=3, **options)
    assert torch.equal(again, whole)


def test_what_is_refused():
    with pytest.raises(ValueError, match="leave compile out"):
        langevin(gaussian, torch.zeros(1, 1), steps=1, step_size=1, metropolis=True, compile=True)
    with pytest.raises(ValueError, match="one number a chain"):
        langevin(lambda x: x.sum(), torch.zeros(2, 1), steps=1, step_size=1, metropolis=True)


def test_corrected_levels_are_exact_where_plain_ones_are_not():
    """Correctors at a step of 1.4 standard deviations, from the cleanest level's density."""
    model = model_of(GaussianMixture([[1.0, -2.0]], [0.5]))
    n = 1000
    level = model.schedule.level(1)
    v = model.schedule.alpha_bar[0] * 0.25 + model.schedule.noise_variance[0]
    wide = 1.4 * level.scale * v**0.5 / level.noise_std
    plan = StepPlan((1,) * 6, (wide,) + (1.0,) * 5)
    plain = Sampler(model).sample(n, steps=plan, correctors=80).var(dim=0).mean()
    exact = Sampler(model).sample(n, steps=plan, correctors=80, metropolis=True).var(dim=0).mean()
    error = 4 / n**0.5
    assert plain / v - 1 > 3 * error
    assert abs(exact / v - 1) < error


def test_traces_tell_acceptance(image_model):
    sampler = Sampler(image_model, precision="fp32")
    plain = sampler.sample(5, steps=3, correctors=2, seed=1)
    samples, trace = sampler.sample(5, steps=3, correctors=2, seed=1, trace="steps", batch_size=2)
    torch.testing.assert_close(samples, plain, rtol=0, atol=1e-5)
    assert trace.acceptance.shape == (6, 5)
    assert ((trace.acceptance > 0) & (trace.acceptance <= 1)).all()
    assert sampler.sample(2, steps=1, trace="levels")[1].acceptance is None
    assert (
        Sampler(image_model, precision="bf16").sample(2, steps=1, trace="steps")[1].acceptance
        is None
    )


def test_a_larger_step_is_accepted_less_often():
    model = model_of(GaussianMixture([[1.0, -2.0]], [0.5]))
    rates = [
        Sampler(model).sample(200, steps=k, trace="steps")[1].acceptance.mean(dim=1)
        for k in (15, 4)
    ]
    assert (rates[0] > rates[1]).all()


def test_corrected_levels_do_not_depend_on_their_batch(image_model):
    sampler = Sampler(image_model, precision="fp32")
    options = {"steps": 3, "metropolis": True, "correctors": 1, "seed": 2}
    whole = sampler.sample(6, **options)
    assert torch.equal(sampler.sample(6, batch_size=4, **options), whole)
    assert torch.equal(sampler.sample(2, first_sample=4, **options), whole[4:])


def test_half_precision_cannot_be_corrected(image_model):
    with pytest.raises(ValueError, match="energies in bf16 cannot be compared"):
        Sampler(image_model, precision="bf16").sample(1, metropolis=True)


def test_the_diagnostics_example(tmp_path, monkeypatch, capsys):
    options = ["--n", "10", "--steps", "4", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["diagnostics.py", *options])
    diagnostics.main()
    made = json.loads((tmp_path / "diagnostics.json").read_text())
    plain, corrected = made["acceptance"]["4"], made["acceptance"]["4, Metropolis"]
    for t in "23456":
        assert made["acceptance"]["2"][t] < plain[t] <= 1
        assert abs(corrected[t] - plain[t]) < 0.2
    assert [len(level) for level in made["median_gain"]["plain"]] == [5] * 6
    assert (tmp_path / "diagnostics.png").exists()
    assert "| 4, Metropolis |" in capsys.readouterr().out
