"""`Sampler.inpaint`: a Gaussian whose conditionals are known, exact known entries, masks, errors.

With Gaussian data, the exact energy of each level and the exact initializer, each operation of the
chain is an affine map plus Gaussian noise, so mean and covariance of the samples follow exactly.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from cdrl_fast import (
    CDRL,
    ChainDiverged,
    NoiseSchedule,
    Sampler,
    StepPlan,
    _extension,
    conditional,
    mixture,
    normal,
    product,
)
from cdrl_fast.engine.energy import PointEnergyAt

MEAN = np.array([0.4, -0.3, 0.2])
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.5, -0.2], [0.3, -0.2, 0.6]])
KNOWN = np.array([True, False, False])
OBSERVED = 1.3
SCHEDULE = NoiseSchedule(kappa=1e-3, step_scale="constant")


def marginal(t):
    """Return mean and covariance of x_t."""
    signal, noise = SCHEDULE.alpha_bar[t], SCHEDULE.noise_variance[t]
    return math.sqrt(signal) * MEAN, signal * COVARIANCE + noise * np.eye(3)


def level_of(logsnr, shift):
    return int(np.abs(SCHEDULE.logsnr - float(logsnr.flatten()[0])).argmin()) + shift


def score(t):
    """Return gain and offset of ∇f(y) = gain y + offset, with the exact energy of level t."""
    level, (mean, covariance) = SCHEDULE.level(t), marginal(t - 1)
    precision = level.energy_variance * np.linalg.inv(covariance) / level.scale
    return -precision / level.scale, precision @ mean


def posterior(t):
    """Return gain and offset of E[m_t x_{t-1} | x_t] = gain x_t + offset."""
    level, (mean, covariance), (mean_t, covariance_t) = (
        SCHEDULE.level(t),
        marginal(t - 1),
        marginal(t),
    )
    gain = level.scale * math.sqrt(1 - level.sigma**2) * covariance @ np.linalg.inv(covariance_t)
    return gain, level.scale * mean - gain @ mean_t


class GaussianEnergy(nn.Module):
    """f(y, λ_{t-1}) = s_t² log N(y / m_t), exact at every level."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(()))

    def forward(self, y, logsnr, label=None):
        gain, offset = (torch.as_tensor(v).to(y) for v in score(level_of(logsnr, 1)))
        return self.unit * (0.5 * (y @ gain * y).sum(1) + y @ offset)


class GaussianInitializer(nn.Module):
    """E[m_t x_{t-1} | x_t], exact at every level."""

    def forward(self, x, logsnr, label=None):
        gain, offset = (torch.as_tensor(v).to(x) for v in posterior(level_of(logsnr, 0)))
        return x @ gain.T + offset


GAUSSIAN = CDRL(GaussianEnergy(), GaussianInitializer(), SCHEDULE, sample_shape=(3,))


class Moments:
    """Mean and covariance of (y, x_t, ε): the state, its anchor and the known entries' noise."""

    def __init__(self):
        self.mean, self.covariance = np.zeros(9), np.diag([1.0] * 9)

    def set(self, part, matrix, offset, noise):
        """Set one of the three parts to matrix (y, x_t, ε) + offset + N(0, noise)."""
        a, b, q = np.eye(9), np.zeros(9), np.zeros((9, 9))
        rows = slice(3 * part, 3 * part + 3)
        a[rows], b[rows], q[rows, rows] = matrix, offset, noise
        self.mean = a @ self.mean + b
        self.covariance = a @ self.covariance @ a.T + q

    def set_known(self, part, t, scale=1.0):
        """Set the known entries of a part to the observation with its noise."""
        matrix = np.eye(3, 9, 3 * part)
        matrix[KNOWN] = 0.0
        matrix[KNOWN, 6:] = scale * math.sqrt(SCHEDULE.noise_variance[t]) * np.eye(3)[KNOWN]
        offset = np.where(KNOWN, scale * math.sqrt(SCHEDULE.alpha_bar[t]) * OBSERVED, 0.0)
        self.set(part, matrix, offset, 0.0)


def expected(steps, passes, noise, correctors=0):
    """Return the scheme's exact mean and covariance of the unknown entries of x_0."""
    moments, eye, zero = Moments(), np.eye(3), np.zeros((3, 3))
    moments.set_known(1, SCHEDULE.levels)
    for t in range(SCHEDULE.levels, 0, -1):
        level = SCHEDULE.level(t, steps)
        if noise == "fresh":
            moments.set(2, np.zeros((3, 9)), 0.0, eye)
        (gain, offset), (start_gain, start_offset) = score(t), posterior(t)
        for pass_index in range(passes):
            if pass_index:
                signal = math.sqrt(1 - level.sigma**2)
                moments.set(1, np.hstack([signal * eye, zero, zero]), 0.0, level.sigma**2 * eye)
            moments.set(
                0, np.hstack([zero, start_gain, zero]), start_offset, level.init_std**2 * eye
            )
            moments.set_known(0, t - 1, level.scale)
            for pull in [level.pull] * level.steps + [0.0] * correctors:
                keep = (1 - pull) * eye + level.drift * gain
                moments.set(
                    0,
                    np.hstack([keep, pull * eye, zero]),
                    level.drift * offset,
                    level.noise_std**2 * eye,
                )
                moments.set_known(0, t - 1, level.scale)
            moments.set(0, np.hstack([level.rescale * eye, zero, zero]), 0.0, 0.0)
        moments.set(1, np.hstack([eye, zero, zero]), 0.0, 0.0)
    return moments.mean[:3][~KNOWN], moments.covariance[:3, :3][np.ix_(~KNOWN, ~KNOWN)]


def conditional_moments():
    """Return mean and covariance of the data's unknown entries given the known one."""
    cross = COVARIANCE[np.ix_(~KNOWN, KNOWN)] @ np.linalg.inv(COVARIANCE[np.ix_(KNOWN, KNOWN)])
    mean = MEAN[~KNOWN] + cross @ (OBSERVED - MEAN[KNOWN])
    return mean, COVARIANCE[np.ix_(~KNOWN, ~KNOWN)] - cross @ COVARIANCE[np.ix_(KNOWN, ~KNOWN)]


def moments_agree(samples, mean, covariance, allowance=0.0):
    """Check sample mean and covariance against a Gaussian's.

    The difference may be 4 standard errors plus ``allowance``.
    """
    x, n = samples.double().numpy(), len(samples)
    variances = np.diag(covariance)
    mean_error = np.sqrt(variances / n)
    covariance_error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert (abs(x.mean(0) - mean) < 4 * mean_error + allowance).all()
    assert (abs(np.cov(x.T) - covariance) < 4 * covariance_error + allowance).all()


@pytest.mark.parametrize("noise", ["shared", "fresh"])
@pytest.mark.parametrize(("steps", "passes", "correctors"), [(None, 1, 0), (5, 3, 0), (3, 2, 4)])
def test_moments_follow_the_recursion(noise, steps, passes, correctors):
    """Mean and covariance of the unknown entries follow the recursion of the scheme."""
    n = 40_000
    samples = Sampler(GAUSSIAN).inpaint(
        torch.tensor([[OBSERVED, math.nan, math.nan]]),
        torch.from_numpy(KNOWN),
        seed=4,
        samples=n,
        steps=steps,
        noise=noise,
        passes=passes,
        correctors=correctors,
        batch_size=n,
    )
    assert torch.equal(samples[:, 0], torch.full((n,), OBSERVED))
    moments_agree(samples[:, ~KNOWN], *expected(steps, passes, noise, correctors))


def test_passes_reach_the_conditional_distribution():
    """Twice as many passes halve the error, down to the error of the step size."""
    mean, covariance = conditional_moments()
    passes, errors = (1, 2, 4, 8), []
    for count in passes:
        scheme = expected(60, count, "fresh")
        errors.append(max(abs(scheme[0] - mean).max(), abs(scheme[1] - covariance).max()))
    assert errors[0] > 0.2
    assert all(after < 0.6 * before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.04
    n = 4000
    images, known = torch.tensor([[OBSERVED, 0.0, 0.0]]), torch.from_numpy(KNOWN)
    samples = Sampler(GAUSSIAN).inpaint(
        images, known, samples=n, steps=60, passes=8, noise="fresh", batch_size=n
    )
    moments_agree(samples[:, ~KNOWN], mean, covariance, allowance=errors[-1])


def random_images(n=4, channels=1, side=8):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(n, channels, side, side, generator=generator) - 1


IMAGES = random_images()
MASKS = {
    "half": torch.arange(8)[:, None] < 4,
    "column": torch.arange(8) == 3,
    "one for all images": random_images(1) > 0.3,
    "one for each image": random_images() > 0.0,
    "nothing": torch.tensor(False),
    "everything": torch.tensor(True),
}


@pytest.mark.parametrize("noise", ["shared", "fresh"])
@pytest.mark.parametrize("name", MASKS)
def test_known_pixels_are_exact(image_model, name, noise):
    images, known = random_images(), MASKS[name]
    masked = images.masked_fill(~known, math.nan)
    before = masked.clone()
    sampler = Sampler(image_model)
    samples = sampler.inpaint(masked, known, samples=2, noise=noise, passes=2, label="one")
    assert samples.shape == (8, 1, 8, 8)
    assert torch.equal(masked.nan_to_num(7.0), before.nan_to_num(7.0))
    mask = known.expand_as(images).repeat_interleave(2, 0)
    assert torch.equal(samples[mask], images.repeat_interleave(2, 0)[mask])
    assert samples.abs().max() <= 1
    if name not in ("nothing", "everything"):
        assert (samples[0::2] != samples[1::2])[~mask[::2]].any()


def test_a_mask_may_differ_between_channels():
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Flatten(), nn.Linear(27, 1), nn.Flatten(0))
    energy.forward = lambda y, logsnr, label=None: -0.1 * y.square().flatten(1).sum(1)
    model = CDRL(energy, None, NoiseSchedule(steps=2), sample_shape=(3, 3, 3))
    images = random_images(2, 3, 3)
    known = torch.tensor([True, False, True])[:, None, None]
    samples = Sampler(model).inpaint(images, known)
    assert torch.equal(samples[:, ::2], images[:, ::2])
    assert not torch.isclose(samples[:, 1], images[:, 1]).any()


def test_with_nothing_known_the_samples_are_those_of_sample(image_model, point_model):
    images, nothing = torch.full((4, 1, 8, 8), math.nan), torch.tensor(False)
    sampler = Sampler(image_model)
    expected = sampler.sample(4, seed=5, label=2, first_sample=3)
    assert torch.equal(sampler.inpaint(images, nothing, seed=5, label=2, first_sample=3), expected)
    points = Sampler(point_model, precision="fp64")
    samples = points.inpaint(torch.zeros(4, 2), nothing)
    torch.testing.assert_close(samples, points.sample(4), rtol=0, atol=1e-9)


def test_points_take_one_step_per_call(point_model):
    """The kernel that takes all steps in one call would change the known coordinate."""
    known, calls, step = torch.tensor([True, False]), [], PointEnergyAt.gradient
    sampler = Sampler(point_model, precision="fp32")
    expected = sampler.inpaint(torch.ones(1, 2), known, samples=6, passes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PointEnergyAt, "gradient", lambda *a: calls.append(a) or step(*a))
        assert torch.equal(sampler.inpaint(torch.ones(1, 2), known, samples=6, passes=2), expected)
    assert len(calls) == 2 * 6 * 3


class RecordingNetwork(nn.Module):
    """An energy or an initializer that records its inputs."""

    def __init__(self, energy):
        super().__init__()
        self.energy, self.inputs = energy, []

    def __deepcopy__(self, memo):
        return self

    def forward(self, y, logsnr, label=None):
        self.inputs.append(y.detach().clone())
        return -0.1 * y.square().flatten(1).sum(1) if self.energy else 0.9 * y


@pytest.mark.parametrize("noise", ["shared", "fresh"])
@pytest.mark.parametrize("drl", [False, True])
def test_networks_see_the_noised_observation(noise, drl):
    """Known entries are √ᾱ_t o + √(1 - ᾱ_t) ε in every x_t, and m_t times that in y_0 … y_{K-1}."""
    energy, initializer = RecordingNetwork(True), RecordingNetwork(False)
    schedule = NoiseSchedule(levels=3, steps=2)
    model = CDRL(energy, None if drl else initializer, schedule, sample_shape=(1, 2, 2)).double()
    images = random_images(1, 1, 2).double()
    known = torch.tensor([[True, False], [False, True]])
    sampler = Sampler(model, precision="fp64")
    sampler.inpaint(images, known, samples=3, seed=6, first_sample=8, noise=noise)

    def noised_observation(t):
        index = (3 - t) * 2**16 if noise == "fresh" else 0
        position = {"seed": 6, "draw": 2 * 2**24 + index, "first_sample": 8}
        eps = normal((3, 1, 2, 2), **position, dtype=torch.float64, backend="reference")
        return schedule.alpha_bar[t] ** 0.5 * images + schedule.noise_variance[t] ** 0.5 * eps

    def agrees(state, expected):
        torch.testing.assert_close(state[..., known], expected[..., known], rtol=1e-7, atol=0)

    # The denoising step computes one more gradient at the end.
    assert len(energy.inputs) == 3 * 2 + 1
    for y, t in zip(energy.inputs, (3, 3, 2, 2, 1, 1, 1), strict=True):
        agrees(y, schedule.level(t).scale * noised_observation(t - 1))
    if not drl:
        for x, t in zip(initializer.inputs, (3, 2, 1), strict=True):
            agrees(x, noised_observation(t))


@pytest.mark.skipif(_extension.load() is None, reason="library operations depend on the batch")
@pytest.mark.parametrize(("precision", "noise"), [("fp32", "shared"), ("bf16", "fresh")])
def test_batches_and_position_in_the_stream(precision, noise):
    sampler = Sampler(CDRL.from_pretrained("digits"), precision=precision)
    images, known = random_images(), MASKS["one for each image"]
    options = {"samples": 3, "steps": 2, "noise": noise, "passes": 2, "guidance": 0.5}
    label = [3, 1, 4, 2]
    samples = sampler.inpaint(images, known, label=label, **options)
    for size in (1, 5, 7):
        batched = sampler.inpaint(images, known, label=label, batch_size=size, **options)
        assert torch.equal(batched, samples)
    rest = sampler.inpaint(images[2:], known[2:], label=label[2:], first_sample=6, **options)
    assert torch.equal(rest, samples[6:])
    assert not torch.equal(sampler.inpaint(images, known, label=label, seed=1, **options), samples)


def test_noise_passes_and_labels_change_the_samples(image_model):
    sampler = Sampler(image_model)
    images, known = random_images(), MASKS["half"]
    cases = ({}, {"noise": "fresh"}, {"passes": 2}, {"label": 1}, {"label": [1, 2, 3, 1]})
    cases += ({"correctors": 2}, {"correctors": 2, "passes": 2})
    samples = [sampler.inpaint(images, known, **options) for options in cases]
    for index, one in enumerate(samples):
        assert all(not torch.equal(one, other) for other in samples[:index])
    assert torch.equal(samples[3][3], samples[4][3])


def test_combinations_are_completed_as_models_are(image_model):
    """Known entries are exact; the components of a mixture depend on the position in the stream."""
    both = product(
        conditional(image_model, 1),
        mixture(conditional(image_model, 2), conditional(image_model, 3)),
    )
    images, known = random_images(), MASKS["one for each image"]
    sampler = Sampler(both, precision="fp64")
    samples = sampler.inpaint(images, known, samples=2, passes=2, correctors=2)
    mask = known.repeat_interleave(2, 0)
    assert torch.equal(samples[mask], images.double().repeat_interleave(2, 0)[mask])
    rest = sampler.inpaint(images[2:], known[2:], samples=2, passes=2, correctors=2, first_sample=4)
    torch.testing.assert_close(rest, samples[4:], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="a combination has its own"):
        sampler.inpaint(images, known, label=1)


def test_nothing_to_complete(image_model):
    sampler = Sampler(image_model)
    assert sampler.inpaint(random_images()[:0], MASKS["half"]).shape == (0, 1, 8, 8)
    assert sampler.inpaint(random_images()[:0], MASKS["half"], candidates=3).shape == (0, 1, 8, 8)


def test_divergence(image_model):
    plan = StepPlan((2,) * 6, (1.0, 1.0, 1.0, 1e30, 1.0, 1.0))
    message = r"sample 9 became non-finite \(NaN or Inf\) at level 4, step 1"
    with pytest.raises(ChainDiverged, match=message):
        Sampler(image_model).inpaint(random_images(), MASKS["half"], first_sample=9, steps=plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": IMAGES.numpy()}, TypeError, "inpaint: images must be a floating-point"),
        ({"known": [True]}, TypeError, "known: expected a bool tensor.*, got list"),
        ({"images": IMAGES[0]}, ValueError, r"inpaint: expected \(n, 1, 8, 8\), got"),
        ({"images": 1.5 * IMAGES}, ValueError, "images: expected known entries in \\[-1, 1\\]"),
        ({"images": IMAGES * math.nan}, ValueError, "NaN or infinity among the known"),
        ({"known": torch.ones(8, 8)}, TypeError, "known: expected a bool tensor.*float32"),
        ({"known": torch.ones(4, 8, 8) > 0}, ValueError, "known: expected a shape that broadcasts"),
        ({"samples": 0}, ValueError, r"samples must be in \[1"),
        ({"candidates": 0}, ValueError, r"candidates must be in \[1"),
        ({"passes": 0}, ValueError, r"passes must be in \[1"),
        ({"passes": 9000}, ValueError, "9000 passes need 36000 draws"),
        ({"passes": 200, "correctors": 200}, ValueError, "200 passes need 40000 draws"),
        ({"noise": "none"}, ValueError, 'noise: expected "shared" or "fresh"'),
        ({"label": [1, 2]}, ValueError, "expected one label or 4, got 2"),
        ({"guidance": 1.0}, ValueError, "pass the label to guide towards"),
        ({"seed": "x"}, TypeError, "seed must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be in"),
    ],
)
def test_bad_input(image_model, options, error, message):
    with pytest.raises(error, match=message):
        Sampler(image_model).inpaint(**{"images": IMAGES, "known": MASKS["half"], **options})


@pytest.mark.gpu
def test_on_a_gpu():
    sampler = Sampler(CDRL.from_pretrained("digits"), device="cuda")
    images, known = random_images(), MASKS["one for each image"]
    samples = sampler.inpaint(images, known, samples=2, passes=2).cpu()
    mask = known.repeat_interleave(2, 0)
    assert torch.equal(samples[mask], images.repeat_interleave(2, 0)[mask])
    assert (samples[0::2] != samples[1::2])[~known].any()
