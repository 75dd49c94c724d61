"""Chains whose mean and variance are known: f = 0 and a quadratic f, at every level.

With f(y) = -b y²/2 a step is y ← (1 - drift·b - pull) y + pull x_t + s z, a linear recursion. Mean
and variance of y_K follow exactly from those of y_0 for a fixed x_t. The mean of the proposal, the
variance of the data and x_t are neither 0 nor 1.
"""

import math

import pytest
import torch
from torch import nn

from cdrl_fast import CDRL, NoiseSchedule, Sampler
from cdrl_fast.data import Dataset
from cdrl_fast.ops import langevin_step, normal
from cdrl_fast.ops.keys import TrainingKeys
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.trainer import Trainer

N = 40_000


class Quadratic(nn.Module):
    """f(y) = -curvature ‖y - centre‖² / 2."""

    def __init__(self, curvature, centre=0.0):
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))
        self.centre = centre

    def forward(self, y, logsnr, label=None):
        return -0.5 * self.curvature * (y - self.centre).square().flatten(1).sum(1)


class Shift(nn.Module):
    """An initializer whose mean is gain · x + shift."""

    def __init__(self, gain, shift):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.shift = shift

    def forward(self, x, logsnr, label=None):
        return self.gain * x + self.shift


def moments_agree(samples, mean, variance):
    """Check sample mean and variance against a Gaussian's, within 4 standard errors."""
    x = samples.double().flatten()
    n = x.numel()
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs(x.var() - variance) < 4 * variance * math.sqrt(2 / n)


def after_level(level, mean, variance, covariance, anchor, anchor_variance, b, centre=0.0):
    """Return mean and variance of y_K from the moments of y_0 and x_t."""
    keep = 1 - level.drift * b - level.pull
    for _ in range(level.steps):
        noise = level.noise_std**2
        variance = (
            keep**2 * variance
            + level.pull**2 * anchor_variance
            + 2 * keep * level.pull * covariance
            + noise
        )
        covariance = keep * covariance + level.pull * anchor_variance
        mean = keep * mean + level.pull * anchor + level.drift * b * centre
    return mean, variance


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("curvature", [0.0, 0.08])
@pytest.mark.parametrize("step_scale", ["cumulative", "constant"])
def test_sampler_at_every_level(steps, curvature, step_scale):
    """The state after each level, from x_T ~ N(0, 1) to x_0, has the moments of the recursion."""
    kappa = 2e-4 if step_scale == "cumulative" else 1e-3
    schedule = NoiseSchedule(kappa=kappa, step_scale=step_scale)
    gain, shift, centre = 0.8, 0.3, 0.5
    energy = Quadratic(curvature, centre)
    model = CDRL(energy, Shift(gain, shift), schedule, sample_shape=(1,))
    trace = Sampler(model).sample_trace(N, seed=1, steps=steps, batch_size=N)
    mean, variance = 0.0, 1.0
    moments_agree(trace.states[0], mean, variance)
    for state, t in zip(trace.states[1:], range(6, 0, -1), strict=True):
        level = schedule.level(t, steps)
        start = gain**2 * variance + level.init_std**2
        end = after_level(
            level, gain * mean + shift, start, gain * variance, mean, variance, curvature, centre
        )
        mean, variance = end[0] / (level.scale + 1e-8), end[1] / (level.scale + 1e-8) ** 2
        moments_agree(state, mean, variance)


@pytest.mark.parametrize("t", range(1, 7))
def test_long_chain_reaches_the_recovery_likelihood(t):
    """After many steps the chain is at its fixed point, near the Gaussian p(y | x_t)."""
    level = NoiseSchedule(kappa=1e-3, step_scale="constant").level(t)
    anchor, b = 0.7, 3.0 * level.energy_variance
    x = torch.full((N, 1), 2.0)
    steps = 60 if t < 6 else 300
    for k in range(1, steps + 1):
        x = langevin_step(
            x,
            -b * x,
            torch.full_like(x, anchor) if level.pull else None,
            drift=level.drift,
            pull=level.pull,
            noise_std=level.noise_std,
            rng=(3, k, 0),
        )
    keep = 1 - level.drift * b - level.pull
    decay = keep**steps
    mean = level.pull * anchor / (1 - keep) * (1 - decay) + decay * 2.0
    variance = level.noise_std**2 * (1 - decay**2) / (1 - keep**2)
    moments_agree(x, mean, variance)


def test_drl_starts_from_x_t():
    """Without an initializer y_0 is x_t, without noise."""
    schedule = NoiseSchedule(levels=3, steps=4)
    model = CDRL(Quadratic(0.05), None, schedule, sample_shape=(1,))
    trace = Sampler(model).sample_trace(N, seed=2, batch_size=N)
    mean, variance = 0.0, 1.0
    for state, t in zip(trace.states[1:], range(3, 0, -1), strict=True):
        level = schedule.level(t)
        end = after_level(level, mean, variance, variance, mean, variance, 0.05)
        mean, variance = end[0] / level.scale, end[1] / level.scale**2
        moments_agree(state, mean, variance)


def test_denoising_step_is_tweedie():
    """Images are (x_0 + (1 - ᾱ_0) ∇ log p(x_0)) / √ᾱ_0 with log p(x) = f(m_1 x)/s_1²."""
    schedule = NoiseSchedule()
    level = schedule.level(1)
    curvature = 4.0 * level.energy_variance
    model = CDRL(Quadratic(curvature), Shift(0.5, 0.0), schedule, sample_shape=(1, 2, 2)).double()
    sampler = Sampler(model, precision="fp64")
    for scale in (1.0, 2.0):
        trace = sampler.sample_trace(50, denoise_scale=scale)
        samples = trace.samples
        x0 = sampler.sample(50, denoise_scale=0.0) * math.sqrt(schedule.alpha_bar[0])
        inside = x0.abs() < 0.99
        score = -4.0 * level.scale**2 * x0
        cleaned = x0 + scale * schedule.noise_variance[0] * score
        expected = (cleaned / math.sqrt(schedule.alpha_bar[0])).clamp(-1, 1)
        assert inside.float().mean() > 0.1
        torch.testing.assert_close(samples[inside], expected[inside], rtol=0, atol=1e-10)
        torch.testing.assert_close(trace.states[-1].double()[inside], x0[inside], rtol=0, atol=1e-6)


def test_training_chain_of_mixed_levels():
    """The trainer's chain has the moments of each level, with all levels in one batch."""
    schedule = NoiseSchedule(kappa=1e-3, step_scale="constant")
    data = Dataset("points", torch.zeros(10, 2).numpy(), None, (), None)
    model = CDRL(Quadratic(0.1), Shift(1.0, 0.0), schedule, sample_shape=(2,))
    trainer = Trainer(model, data, TrainConfig(batch_size=6 * N // 4))
    t = torch.arange(6 * N // 4) % 6 + 1
    anchor = torch.full((len(t), 2), 0.7)
    start = 0.4 + 0.9 * normal((len(t), 2), seed=9, draw=0)
    gradients = trainer._gradients
    level_table = gradients._levels.at(t)
    revised = gradients.revise(
        start, anchor, level_table, None, TrainingKeys(trainer.config.seed, 0)
    )[0]
    for level_index in range(1, 7):
        level = schedule.level(level_index)
        mean, variance = after_level(level, 0.4, 0.81, 0.0, 0.7, 0.0, 0.1)
        moments_agree(revised[t == level_index], mean, variance)
