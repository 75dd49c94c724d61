"""Linear combinations of a network's conditional energies, against the terms one by one."""

from functools import partial

import pytest
import torch

from cdrl_fast import ResNetEnergy
from cdrl_fast.engine import Context, Terms, steps
from cdrl_fast.engine.autograd import AutogradEnergy
from cdrl_fast.engine.energy import CpuImageEnergy, GpuImageEnergy
from cdrl_fast.ops import dispatch, langevin_step
from cdrl_fast.ops.keys import Key
from cdrl_fast.ops.phase import Phase
from cdrl_fast.precision import resolve
from tests.conftest import randomize

CPU = torch.device("cpu")
PRECISIONS = {name: resolve(name, CPU, has_kernels=False) for name in ("fp64", "fp32", "fp16")}
BATCH = 5
LABELS = torch.tensor([1, 3, 0, 2, 1])
ONE, TWO, NONE = torch.tensor([1]), torch.tensor([2]), torch.tensor([0])
PER_SAMPLE = torch.tensor([0.0, -0.5, 1.5, 4.0, 0.3], dtype=torch.float64)
COMBINATIONS = {
    "guided": ((2.5, -1.5), (TWO, NONE)),
    "guided, labels per sample": ((2.5, -1.5), (LABELS, NONE)),
    "weights per sample": ((1 + PER_SAMPLE, -PER_SAMPLE), (TWO, NONE)),
    "weights and labels per sample": ((1 + PER_SAMPLE, -1.5), (NONE, LABELS)),
    "product of three": ((1.0, 0.75, -0.75), (ONE, TWO, NONE)),
    "three, all per sample": ((1.0, PER_SAMPLE, -PER_SAMPLE), (LABELS, LABELS.flip(0), NONE)),
    "one, tempered": ((0.4,), (ONE,)),
    "one, tempered per sample": ((PER_SAMPLE,), (ONE,)),
}
ENERGIES = {
    "passes": partial(GpuImageEnergy, backend="reference"),
    "images": partial(CpuImageEnergy, backend="auto"),
    "autograd": AutogradEnergy,
}


@pytest.fixture(params=COMBINATIONS)
def terms(request):
    return Terms(*COMBINATIONS[request.param])


def example(blocks=2):
    """Return a network and states in float64."""
    torch.manual_seed(0)
    energy = randomize(ResNetEnergy(1, 32, (1, 2), blocks, classes=3), std=0.05).double()
    return energy, torch.randn(BATCH, 1, 4, 6, dtype=torch.float64)


def separate(energy, y, terms, logsnr):
    """Return the module's value and gradient in float64, and the sum of the terms' norms."""
    value = gradient = size = 0.0
    for weight, label in zip(terms.weights, terms.labels, strict=True):
        x = y.detach().double().clone().requires_grad_(True)
        f = energy.double()(x, logsnr.double().expand(len(y)), label.expand(len(y)))
        (g,) = torch.autograd.grad(f.sum(), x)
        weight = torch.as_tensor(weight, dtype=torch.float64)
        value, gradient = value + weight * f.detach(), gradient + weight.view(-1, 1, 1, 1) * g
        size = size + abs(weight.view(-1, 1, 1, 1)) * g.norm()
    return value, gradient, float(torch.as_tensor(size).max())


def frozen_energy(kind, network, precision):
    return ENERGIES[kind](network, device=CPU, precision=PRECISIONS[precision])


def error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("level_per_sample", [False, True])
@pytest.mark.parametrize("kind", ENERGIES)
def test_float64_is_the_separate_terms(kind, terms, level_per_sample):
    energy, y = example()
    count = BATCH if level_per_sample else 1
    logsnr = torch.linspace(-5, 9.8, count, dtype=torch.float64)
    at = frozen_energy(kind, energy, "fp64").at(logsnr, terms)
    value, gradient, _ = separate(energy, y, terms, logsnr)
    torch.testing.assert_close(at.value(y), value, rtol=1e-10, atol=1e-10)
    assert error(at.gradient(y), gradient) <= 1e-10


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.03)])
def test_passes_in_lower_precisions(terms, precision, tolerance):
    """Errors are relative to the terms, whose guided difference is of nearly equal numbers."""
    energy, y = example()
    frozen = frozen_energy("passes", energy.float(), precision)
    logsnr, y = torch.tensor([1.0]), y.float()
    at = frozen.at(logsnr, terms)
    frozen.at(logsnr, Terms()).gradient(torch.cat([y, y, y, y]))
    for buffer in frozen.operation(y.shape).buffers():
        buffer.fill_(float("nan") if buffer.is_floating_point() else 0x5A5A5A5A)
    gradient, value = at.gradient(y).clone(), at.value(y)
    expected, expected_gradient, size = separate(energy, y, terms, logsnr)
    assert (gradient - expected_gradient).norm() <= tolerance * size
    assert error(value, expected) <= tolerance


@pytest.mark.parametrize(
    ("precision", "name"), [("fp32", "three, all per sample"), ("fp16", "guided")]
)
def test_triton_agrees(interpreter, precision, name):
    energy, y = example(blocks=1)
    logsnr, y, terms = torch.tensor([1.0]), y[:2].float(), Terms(*COMBINATIONS[name]).slice(0, 2)
    options = {"device": CPU, "precision": PRECISIONS[precision]}
    expected, actual = (
        GpuImageEnergy(energy.float(), backend=backend, **options).at(logsnr, terms)
        for backend in ("reference", "triton")
    )
    tolerance = 1e-4 if precision == "fp32" else 0.05
    _, _, size = separate(energy, y, terms, logsnr)
    assert error(actual.value(y), expected.value(y)) <= tolerance
    assert (actual.gradient(y) - expected.gradient(y)).norm() <= tolerance * size


def test_a_step_is_one_launch_after_the_passes(monkeypatch, terms):
    """`langevin_` uses the fused update, along the combined gradient."""
    energy, y = example()
    energy, y, logsnr = energy.float(), y.float(), torch.tensor([1.0])
    options = {"drift": 0.3, "pull": 0.2, "noise_std": 0.1}
    at = frozen_energy("passes", energy, "fp32").at(logsnr, terms)
    anchor = torch.flip(y, (0,))
    expected = langevin_step(y, at.gradient(y), anchor, rng=(1, 3, 3), **options)
    monkeypatch.setattr(steps, "bound_step", None)
    first_bad = torch.zeros((), dtype=torch.int64)
    actual = y.clone()
    phase = Phase(1, **options, rescale=1.0, key=Key(1, 2, 3))
    at.langevin_(actual, anchor, phase, Context(first_bad))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(dispatch.reason("native", CPU) is not None, reason="no compiled module")
def test_a_sample_has_the_same_bits_in_any_batch(terms):
    energy, y = example()
    frozen = frozen_energy("images", energy.float(), "fp32")
    y, logsnr = y.float(), torch.tensor([1.0])
    full = frozen.at(logsnr, terms)
    values, gradient = full.value(y), full.gradient(y).clone()
    for start, stop in ((0, 1), (1, 3), (3, 5)):
        part = frozen.at(logsnr, terms.slice(start, stop))
        assert torch.equal(part.value(y[start:stop]), values[start:stop])
        assert torch.equal(part.gradient(y[start:stop]), gradient[start:stop])


def test_empty_batches(terms):
    energy, y = example()
    for kind in ENERGIES:
        at = frozen_energy(kind, energy, "fp64").at(torch.ones(1).double(), terms.slice(0, 0))
        assert at.value(y[:0]).shape == (0,)
        assert at.gradient(y[:0]).shape == (0, 1, 4, 6)


class Labels(torch.nn.Module):
    """A network that treats None unlike label 0."""

    def forward(self, y, logsnr, label):
        scale = logsnr if label is None else logsnr * label
        return (scale[:, None] * y**2).sum(1)


def test_a_network_may_tell_no_label_from_label_0():
    y, terms = torch.randn(3, 2), Terms((2.0, -1.0), (None, torch.tensor([3])))
    frozen = AutogradEnergy(Labels(), device=CPU, precision=PRECISIONS["fp32"])
    at = frozen.at(torch.ones(1), terms)
    torch.testing.assert_close(at.value(y), -(y**2).sum(1))
    torch.testing.assert_close(at.gradient(y), -2 * y)
