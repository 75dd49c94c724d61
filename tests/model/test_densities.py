"""Combinations of densities: their algebra, their samples against exact ones, their errors."""

import composition
import pytest
import torch
from gaussians import GaussianMixture, model_of
from torch import nn

from cdrl_fast import (
    CDRL,
    ChainDiverged,
    NoiseSchedule,
    ResNetEnergy,
    Sampler,
    UNetInitializer,
    conditional,
    guided,
    mixture,
    negated,
    normal,
    product,
    tempered,
)
from cdrl_fast.model.densities import ClassDensity
from cdrl_fast.sampling.label_terms import label_terms
from cdrl_fast.sampling.request import SampleRequest
from tests.conftest import randomize

CPU = torch.device("cpu")


def terms(density, n=4, rng=(0, 0)):
    return label_terms(density, SampleRequest(n, seed=rng[0], first_sample=rng[1]), CPU)


def listed(network_terms):
    """Return (weight, label, share) of each term, with tensors as lists."""
    columns = [network_terms.weights, network_terms.labels, network_terms.initializer_weights]
    lists = [[v.tolist() if isinstance(v, torch.Tensor) else v for v in col] for col in columns]
    return list(zip(*lists, strict=True))


def test_linear_forms(image_model):
    m = image_model
    a, b = conditional(m, 1), conditional(m, "two")
    cases = {
        product(a, b): [(1.0, [1], 1.0), (1.0, [3], 1.0), (-1.0, [0], -1.0)],
        guided(a, m, 0.5): [(1.5, [1], 1.5), (-0.5, [0], -0.5)],
        guided(a, m, 0.0): [(1.0, [1], 1.0)],
        negated(m, b, 0.25): [(1.25, [0], 1.25), (-0.25, [3], -0.25)],
        tempered(guided(a, m, 1.0), 2.0): [(1.0, [1], 2.0), (-0.5, [0], -1.0)],
        product(a, a): [(2.0, [1], 2.0), (-1.0, [0], -1.0)],
        # Terms that cancel are not evaluated.
        product(guided(a, m, 1.0), a, base=a): [(2.0, [1], 2.0), (-1.0, [0], -1.0)],
        product(a): [(1.0, [1], 1.0)],
    }  # fmt: skip
    for density, expected in cases.items():
        (network_terms,) = terms(density)
        assert sorted(listed(network_terms), key=str) == sorted(expected, key=str)
        assert density.models == (m,)


def test_mixtures_of_one_network_share_its_terms(image_model):
    m = image_model
    density = mixture(conditional(m, 1), guided(conditional(m, 2), m, 1.0), weights=[1, 3])
    (shared,) = terms(density, n=2000)
    assert len(shared.labels) == 2
    first, second = shared.labels
    assert set(first.tolist()) == {1, 2}
    chosen = first == 2
    assert abs(chosen.double().mean() - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    weights = torch.stack(shared.weights)
    assert weights[:, chosen].unique(dim=1).tolist() == [[2.0], [-1.0]]
    assert weights[:, ~chosen].unique(dim=1).tolist() == [[1.0], [0.0]]
    assert second.tolist() == [0]
    # The component does not depend on the batch.
    (later,) = terms(density, n=500, rng=(0, 1500))
    assert torch.equal(later.labels[0], first[1500:])
    # Two mixtures draw their components independently.
    pair = product(
        mixture(conditional(m, 1), conditional(m, 2)), mixture(conditional(m, 1), conditional(m, 3))
    )
    (shared,) = terms(pair, n=2000)
    agree = (shared.labels[1] == shared.labels[2]).double().mean()
    assert 0.15 < agree < 0.35


def test_guided_density_is_guidance(image_model):
    """Compare with the samples of label= and guidance=, in float64."""
    model = image_model.double()
    options = {"seed": 3, "steps": 2}
    sampler = Sampler(model, precision="fp64")
    expected = sampler.sample(3, label=2, guidance=0.7, **options)
    density = guided(conditional(model, 2), model, 0.7)
    actual = Sampler(density, precision="fp64").sample(3, **options)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    # Each sample of a mixture equals the sample of one of its components.
    mixed = Sampler(mixture(density, conditional(model, 1)), precision="fp64")
    samples = mixed.sample(8, **options)
    of_first = sampler.sample(8, label=2, guidance=0.7, **options)
    of_second = sampler.sample(8, label=1, **options)
    near = (samples - of_first).abs().amax((1, 2, 3)) < 1e-9
    assert 0 < near.sum() < 8
    torch.testing.assert_close(samples[~near], of_second[~near], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        mixed.sample(5, first_sample=3, batch_size=2, **options), samples[3:], rtol=0, atol=1e-12
    )


def images(seed):
    torch.manual_seed(seed)
    energy = ResNetEnergy(1, 8, (1, 2), 1)
    initializer = UNetInitializer(1, 8, 8, (1,), 1, (), 0.0)
    model = CDRL(energy, initializer, NoiseSchedule(3, 3))
    randomize(model, seed)
    return model.eval().double()


def test_networks_trained_apart():
    """Compare one step of a combination with the sum of gradients and proposals."""
    a, b = images(1), images(2)
    density = product(a, b, base=a)
    assert density.models == (a, b)
    density = negated(a, b, 0.5)
    state = Sampler(density, precision="fp64").sample_trace(2, steps=1, trace="steps").states[:3]
    schedule = a.schedule
    level = schedule.level(3, 1)
    noise = [normal((2, 1, 8, 8), seed=0, draw=d, dtype=torch.float64) for d in (0, 65536, 65537)]
    noisy, logsnr = (
        torch.full((1,), x, dtype=torch.float64) for x in (level.logsnr_noisy, level.logsnr)
    )
    x = noise[0]
    with torch.no_grad():
        y = 1.5 * a.initializer(x, noisy) - 0.5 * b.initializer(x, noisy)
    y = y + level.init_std * noise[1]
    torch.testing.assert_close(state[0].double(), y / (level.scale + 1e-8), rtol=1e-5, atol=1e-5)
    leaf = y.clone().requires_grad_(True)
    value = 1.5 * a.energy(leaf, logsnr) - 0.5 * b.energy(leaf, logsnr)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    y = y + level.drift * gradient + level.noise_std * noise[2]
    torch.testing.assert_close(state[1].double(), y / (level.scale + 1e-8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", composition.CASES)
def test_samples_against_the_exact_density(name):
    """Check the total variation distance to the exact density; the product needs correctors."""
    combination, log_density = composition.CASES[name]
    n, expected = 3000, composition.bin_probabilities(log_density)
    sampling_error = composition.exact_sample_distance(expected, n)
    points = Sampler(combination(model_of)).sample(n, correctors=60)
    assert composition.distance(composition.histogram(points), expected) <= sampling_error + 0.1
    # The first model alone is further away, so the test can fail.
    (first, *_) = combination(model_of).models
    alone = Sampler(first).sample(n)
    assert composition.distance(composition.histogram(alone), expected) > sampling_error + 0.1


def test_exact_energies_match_the_diffused_density():
    mixture_of_two = GaussianMixture([[-1.0, 0.5], [2.0, -1.0]], [0.3, 0.8], [0.25, 0.75])
    model = model_of(mixture_of_two)
    level = model.schedule.level(2)
    signal = float(model.schedule.alpha_bar[1])
    x = torch.randn(6, 2, dtype=torch.float64)
    logsnr = torch.full((1,), level.logsnr, dtype=torch.float64)
    value = mixture_of_two.double()(level.scale * x, logsnr) / level.energy_variance
    expected = torch.zeros(6, dtype=torch.float64)
    for mean, std, share in zip(
        mixture_of_two.means, mixture_of_two.stds, mixture_of_two.shares, strict=True
    ):
        std = (signal * std**2 + 1 - signal).sqrt()
        normal_of = torch.distributions.Normal(signal**0.5 * mean, std)
        expected += share * normal_of.log_prob(x).sum(1).exp()
    torch.testing.assert_close(value, expected.log())


def test_correctors_sample_the_marginal():
    """Compare mean and variance with those of many Langevin steps without recovery."""
    model = model_of(GaussianMixture([[1.0, -2.0]], [0.5]))
    n = 1500
    points = Sampler(model).sample(n, correctors=100)
    level = model.schedule.level(1)
    # y ← (1 - drift b) y + noise, b = s²/(m² v): its stationary variance, in x.
    v = model.schedule.alpha_bar[0] * 0.25 + model.schedule.noise_variance[0]
    b = level.energy_variance / (level.scale**2 * v)
    variance = level.noise_std**2 / (1 - (1 - level.drift * b) ** 2) / level.scale**2
    assert abs(points.var(0).mean() / variance - 1) < 4 / n**0.5
    assert abs(points.mean(0) - torch.tensor([1.0, -2.0])).max() < 4 * (variance / n) ** 0.5 + 1e-3
    one_batch = Sampler(model).sample(5, correctors=3, seed=2)
    split = Sampler(model).sample(5, correctors=3, seed=2, batch_size=2)
    assert torch.equal(one_batch, split)
    trace = Sampler(model).sample_trace(2, steps=2, correctors=3, trace="steps")
    samples = trace.samples
    assert len(trace.states) == model.schedule.levels * (1 + 2 + 3)
    torch.testing.assert_close(trace.states[-1], samples)


def test_invalid_combinations_are_refused(image_model, point_model):
    a, other = image_model, images(1).float()
    with pytest.raises(ValueError, match="networks trained apart; pass base="):
        product(a, other)
    with pytest.raises(ValueError, match="needs base="):
        product(other, other)
    with pytest.raises(ValueError, match="the models must have one schedule"):
        product(a, other, base=a)
    drl = CDRL(other.energy, None, other.schedule, sample_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="either all models have an initializer or none has"):
        mixture(other, drl)
    with pytest.raises(ValueError, match="expected temperature > 0, got 0"):
        tempered(a, 0)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="mixture: expected"):
            mixture(a, a, weights=weights)
    with pytest.raises(ValueError, match="expected a finite weight, got nan"):
        guided(conditional(a, 1), a, float("nan"))
    with pytest.raises(TypeError, match="expected models or their combinations, got str"):
        negated(a, "7", 1.0)
    with pytest.raises(ValueError, match="this model is unconditional"):
        conditional(other, 1)
    with pytest.raises(ValueError, match="unknown class 'nine'"):
        conditional(a, "nine")
    with pytest.raises(TypeError, match="expected one class number or name"):
        conditional(a, [1])
    assert conditional(a, 2) == ClassDensity(a, 2)
    with pytest.raises(ValueError, match=r"put conditional\(model, label\)"):
        Sampler(conditional(a, 1)).sample(1, label=1)
    with pytest.raises(ValueError, match="correctors must be in"):
        Sampler(point_model).sample(1, correctors=-1)


def test_a_corrector_that_diverges_is_named():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, y, logsnr, label=None):
            return 1e4 * y.square().sum(1)

    model = CDRL(Steep(), None, NoiseSchedule(2, 1), sample_shape=(2,))
    with pytest.raises(ChainDiverged, match="at level 2, corrector"):
        Sampler(model).sample(1, correctors=40)
