"""The noise schedule against known values, to their printed digits."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cdrl_fast import NoiseSchedule, StepPlan

LOGSNR = [9.8, 2.688820, 1.196880, 0.141071, -0.876073, -2.172388, -5.1]
ALPHA_BAR = [0.99994455, 0.93636371, 0.76796935, 0.53520939, 0.29399222, 0.10225763, 0.00605980]
# √a_t, σ_t², initializer std, c_t, s_t², κ c_t, w_t for t = 1 … 6, images.
IMAGES = [
    (0.967686, 0.063584, 0.00720, 1.0000, 2.5434e-5, 2.0000e-4, 1.0000),
    (0.905628, 0.179839, 0.20113, 33.8772, 2.4370e-3, 6.7754e-3, 0.5946),
    (0.834814, 0.303085, 0.32473, 64.6886, 7.8425e-3, 1.2938e-2, 0.4580),
    (0.741150, 0.450697, 0.40371, 91.5553, 1.6505e-2, 1.8311e-2, 0.3756),
    (0.589766, 0.652176, 0.42237, 112.8391, 2.9436e-2, 2.2568e-2, 0.3122),
    (0.243434, 0.940740, 0.92179, 127.2421, 4.7881e-2, None, 0.2600),
]
POINT_STD = [0.1307, 0.2198, 0.2853, 0.3479, 0.4185, 0.5027]


def agrees(value, printed, digits):
    return abs(value - printed) <= 0.5000001 * 10.0**-digits


def test_logsnr_and_alpha_bar():
    schedule = NoiseSchedule()
    assert all(agrees(a, b, 6) for a, b in zip(schedule.logsnr, LOGSNR, strict=True))
    assert all(agrees(a, b, 8) for a, b in zip(schedule.alpha_bar, ALPHA_BAR, strict=True))
    np.testing.assert_allclose(schedule.alpha_bar + schedule.noise_variance, 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("t", [0, 3, 6])
def test_add_noise(t):
    """Check the factors √ᾱ_t and √(1 - ᾱ_t) and the dtype."""
    x0, noise = torch.tensor([2.0, 0.0]), torch.tensor([0.0, -1.0])
    actual = NoiseSchedule().add_noise(x0, noise, t)
    expected = torch.tensor([2 * ALPHA_BAR[t] ** 0.5, -((1 - ALPHA_BAR[t]) ** 0.5)])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [-1, 7])
def test_no_noise_index(t):
    with pytest.raises(ValueError, match=f"expected t of 0 to 6, got {t}"):
        NoiseSchedule().add_noise(torch.zeros(1), torch.zeros(1), t)


@pytest.mark.parametrize("t", range(1, 7))
def test_image_levels(t):
    schedule = NoiseSchedule()
    level = schedule.level(t)
    root_a, sigma2, init_std, c, s2, pull, weight = IMAGES[t - 1]
    scale = np.sqrt(schedule.alpha_bar[t] / schedule.alpha_bar[t - 1])
    assert agrees(scale, root_a, 6)
    assert level.scale == (1.0 if t == 6 else pytest.approx(scale, abs=1e-15))
    assert agrees(level.sigma**2, sigma2, 6)
    assert agrees(level.init_std, init_std, 5)
    assert agrees(level.energy_variance / (2 * schedule.kappa * level.sigma**2), c, 4)
    assert level.noise_std**2 == pytest.approx(s2, rel=5e-5)
    assert level.energy_variance == pytest.approx(s2, rel=5e-5)
    assert level.pull == (0.0 if pull is None else pytest.approx(pull, rel=5e-5))
    assert agrees(level.loss_weight, weight, 4)
    assert level.drift == 0.5
    assert level.logsnr == schedule.logsnr[t - 1]
    assert level.logsnr_noisy == schedule.logsnr[t]


@pytest.mark.parametrize("t", range(1, 7))
def test_point_levels(t):
    schedule = NoiseSchedule(kappa=1e-3, step_scale="constant")
    level = schedule.level(t)
    assert agrees(level.noise_std, POINT_STD[t - 1], 4)
    assert agrees(level.energy_variance / (2e-3 * level.sigma**2), 134.2935, 4)
    assert level.pull == (0.0 if t == 6 else pytest.approx(0.1343, abs=5e-5))


def test_fewer_steps_are_longer():
    schedule = NoiseSchedule()
    full, short = schedule.level(3), schedule.level(3, steps=5)
    assert short.steps == 5
    assert short.drift == pytest.approx(3 * full.drift)
    assert short.pull == pytest.approx(3 * full.pull)
    assert short.noise_std == pytest.approx(np.sqrt(3) * full.noise_std)
    assert short.energy_variance == full.energy_variance


def test_step_forms():
    schedule = NoiseSchedule()
    assert schedule.plan().counts == (15,) * 6
    assert schedule.plan([1, 2, 3, 4, 5, 6]).counts == (1, 2, 3, 4, 5, 6)
    plan = StepPlan((1,) * 6, (2.0,) * 6)
    assert schedule.plan(plan) is plan
    assert schedule.level(2, plan).noise_std == pytest.approx(2 * schedule.level(2).noise_std)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "steps: expected at least 1, got 0"),
        (-3, ValueError, "at least 1"),
        (2.5, TypeError, "steps: expected an int"),
        (True, TypeError, "expected an int"),
        ("fast", TypeError, "one int for each of 6 levels or a StepPlan, got 'fast'"),
        (65536, ValueError, "expected at most 65535 steps per level, got 65536"),
        ([5, 5], ValueError, "one entry for each of 6 levels, got 2"),
        ([5, 5, 0, 5, 5, 5], ValueError, "at least 1"),
    ],
)
def test_bad_steps(steps, error, message):
    with pytest.raises(error, match=message):
        NoiseSchedule().plan(steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels: expected at least 1"),
        ({"levels": 255}, "at most 254 levels of 65535 steps, got 255 of 15"),
        ({"steps": 65536}, "at most 254 levels of 65535 steps, got 6 of 65536"),
        ({"logsnr_min": 10.0}, "logsnr_max > logsnr_min"),
        ({"kappa": 0.0}, "kappa > 0"),
        ({"logsnr_max": float("inf")}, "beyond the precision of float64"),
        ({"logsnr_max": 2000.0}, "beyond the precision of float64"),
        ({"step_scale": "linear"}, "step_scale must be"),
    ],
)
def test_bad_schedule(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**options)


def test_integers_of_numpy_are_stored_as_python_ints():
    schedule = NoiseSchedule(levels=np.int64(4), steps=np.int32(3))
    assert json.loads(json.dumps(asdict(schedule)))["levels"] == 4


def test_bad_plan_and_level():
    with pytest.raises(ValueError, match="as many multipliers as counts"):
        StepPlan((1, 2), (1.0,))
    with pytest.raises(ValueError, match="must be positive and finite"):
        StepPlan((1, 2), (1.0, -1.0))
    with pytest.raises(ValueError, match="level: expected 1 to 6, got 7"):
        NoiseSchedule().level(7)
