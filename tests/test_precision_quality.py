"""Half precision against full: distances of paired samples and their difference's interval."""

import numpy as np
import precision_quality as script
import pytest


def test_a_shifts_distance_is_its_square():
    real = np.random.default_rng(0).normal(size=(500, 3))
    assert script.frechet(real, real + np.array([3.0, 0.0, 4.0])) == pytest.approx(25.0)


def test_the_interval_tells_worse_from_equal():
    random = np.random.default_rng(0)
    real, full = random.normal(size=(2, 500, 3))
    same = script.compared(real, full, full + random.normal(size=full.shape) * 1e-3, 200)
    assert same["difference_low"] <= 0.0 <= same["difference_high"] <= 0.01
    worse = script.compared(real, full, full + 0.5, 200)
    assert worse["difference_low"] > 0.3
    assert worse["frechet_half"] - worse["frechet_full"] == pytest.approx(0.75, abs=0.4)
