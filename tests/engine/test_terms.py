"""Linear combinations of a network's conditions, against the conditions one after the other."""

from functools import partial

import pytest
import torch

from cdrl_fast import ResNetEnergy
from cdrl_fast.engine import LevelEnergy, Terms, frozen
from cdrl_fast.engine.autograd import AutogradEnergy
from cdrl_fast.engine.energy import CpuImageEnergy, GpuImageEnergy
from cdrl_fast.ops import dispatch, langevin_step
from cdrl_fast.precision import resolve
from tests.conftest import randomize

CPU = torch.device("cpu")
PRECISIONS = {name: resolve(name, CPU, planned=False) for name in ("fp64", "fp32", "fp16")}
BATCH = 5
LABELS = torch.tensor([1, 3, 0, 2, 1])
ONE, TWO, NONE = torch.tensor([1]), torch.tensor([2]), torch.tensor([0])
EACH = torch.tensor([0.0, -0.5, 1.5, 4.0, 0.3], dtype=torch.float64)
COMBINATIONS = {
    "guided": ((2.5, -1.5), (TWO, NONE)),
    "guided, labels a sample": ((2.5, -1.5), (LABELS, NONE)),
    "weights a sample": ((1 + EACH, -EACH), (TWO, NONE)),
    "weights and labels a sample": ((1 + EACH, -1.5), (NONE, LABELS)),
    "product of three": ((1.0, 0.75, -0.75), (ONE, TWO, NONE)),
    "three, all a sample": ((1.0, EACH, -EACH), (LABELS, LABELS.flip(0), NONE)),
    "one, tempered": ((0.4,), (ONE,)),
    "one, tempered a sample": ((EACH,), (ONE,)),
}
PLANS = {
    "passes": partial(GpuImageEnergy, backend="reference"),
    "images": partial(CpuImageEnergy, backend="auto"),
    "autograd": AutogradEnergy,
}


@pytest.fixture(params=COMBINATIONS)
def terms(request):
    return Terms(*COMBINATIONS[request.param])


def made(blocks=2):
    torch.manual_seed(0)
    energy = randomize(ResNetEnergy(1, 32, (1, 2), blocks, classes=3), std=0.05).double()
    return energy, torch.randn(BATCH, 1, 4, 6, dtype=torch.float64)


def separate(energy, y, terms, logsnr):
    """Values and gradients of the module, in float64, and the sum of the terms' absolute ones."""
    value = slope = size = 0.0
    for weight, label in zip(terms.weights, terms.labels, strict=True):
        x = y.detach().double().clone().requires_grad_(True)
        f = energy.double()(x, logsnr.double().expand(len(y)), label.expand(len(y)))
        (g,) = torch.autograd.grad(f.sum(), x)
        weight = torch.as_tensor(weight, dtype=torch.float64)
        value, slope = value + weight * f.detach(), slope + weight.view(-1, 1, 1, 1) * g
        size = size + abs(weight.view(-1, 1, 1, 1)) * g.norm()
    return value, slope, float(torch.as_tensor(size).max())


def planned(plan, energy, precision):
    return PLANS[plan](energy, device=CPU, precision=PRECISIONS[precision])


def error(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("each_level", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_float64_is_the_separate_terms(plan, terms, each_level):
    energy, y = made()
    count = BATCH if each_level else 1
    logsnr = torch.linspace(-5, 9.8, count, dtype=torch.float64)
    at = planned(plan, energy, "fp64").at(logsnr, terms)
    value, slope, _ = separate(energy, y, terms, logsnr)
    torch.testing.assert_close(at.value(y), value, rtol=1e-10, atol=1e-10)
    assert error(at.gradient(y), slope) <= 1e-10


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.03)])
def test_passes_in_lower_precisions(terms, precision, tolerance):
    """Errors are of the terms: guidance takes the difference of two that are nearly equal."""
    energy, y = made()
    plan = planned("passes", energy.float(), precision)
    logsnr, y = torch.tensor([1.0]), y.float()
    at = plan.at(logsnr, terms)
    plan.at(logsnr, Terms()).gradient(torch.cat([y, y, y, y]))
    for buffer in plan.operation(y.shape).buffers():
        buffer.fill_(float("nan") if buffer.is_floating_point() else 0x5A5A5A5A)
    got, value = at.gradient(y).clone(), at.value(y)
    wanted, slope, size = separate(energy, y, terms, logsnr)
    assert (got - slope).norm() <= tolerance * size
    assert error(value, wanted) <= tolerance


@pytest.mark.parametrize(
    ("precision", "name"), [("fp32", "three, all a sample"), ("fp16", "guided")]
)
def test_triton_agrees(interpreter, precision, name):
    energy, y = made(blocks=1)
    logsnr, y, terms = torch.tensor([1.0]), y[:2].float(), Terms(*COMBINATIONS[name]).slice(0, 2)
    options = {"device": CPU, "precision": PRECISIONS[precision]}
    rooms_of = ("reference", "triton")
    expected, got = (
        GpuImageEnergy(energy.float(), backend=kernels, **options).at(logsnr, terms)
        for kernels in rooms_of
    )
    tolerance = 1e-4 if precision == "fp32" else 0.05
    _, _, size = separate(energy, y, terms, logsnr)
    assert error(got.value(y), expected.value(y)) <= tolerance
    assert (got.gradient(y) - expected.gradient(y)).norm() <= tolerance * size


def test_a_step_is_one_launch_after_the_passes(monkeypatch, terms):
    """`LevelEnergy.walk` takes the fused update, along the combined gradient."""
    energy, y = made()
    energy, y, logsnr = energy.float(), y.float(), torch.tensor([1.0])
    numbers = {"drift": 0.3, "pull": 0.2, "noise_std": 0.1}
    at = planned("passes", energy, "fp32").at(logsnr, terms)
    anchor = torch.flip(y, (0,))
    expected = langevin_step(y, at.gradient(y), anchor, rng=(1, 2, 3), **numbers)
    monkeypatch.setattr(frozen, "langevin_step_", None)
    first_bad = torch.zeros((), dtype=torch.int64)
    got = y.clone()
    LevelEnergy(at).walk(got, anchor, steps=1, rng=(1, 2, 3), first_bad=first_bad, **numbers)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(dispatch.reason("native", CPU) is not None, reason="no compiled module")
def test_a_sample_has_the_same_bits_in_any_batch(terms):
    energy, y = made()
    plan, y, logsnr = planned("images", energy.float(), "fp32"), y.float(), torch.tensor([1.0])
    whole = plan.at(logsnr, terms)
    values, gradient = whole.value(y), whole.gradient(y).clone()
    for start, stop in ((0, 1), (1, 3), (3, 5)):
        part = plan.at(logsnr, terms.slice(start, stop))
        assert torch.equal(part.value(y[start:stop]), values[start:stop])
        assert torch.equal(part.gradient(y[start:stop]), gradient[start:stop])


def test_empty_batches(terms):
    energy, y = made()
    for plan in PLANS:
        at = planned(plan, energy, "fp64").at(torch.ones(1).double(), terms.slice(0, 0))
        assert at.value(y[:0]).shape == (0,)
        assert at.gradient(y[:0]).shape == (0, 1, 4, 6)


class Labels(torch.nn.Module):
    """A network to which no label is something of its own."""

    def forward(self, y, logsnr, label):
        scale = logsnr if label is None else logsnr * label
        return (scale[:, None] * y**2).sum(1)


def test_a_network_may_tell_no_label_from_label_0():
    y, terms = torch.randn(3, 2), Terms((2.0, -1.0), (None, torch.tensor([3])))
    plan = AutogradEnergy(Labels(), device=CPU, precision=PRECISIONS["fp32"])
    at = plan.at(torch.ones(1), terms)
    torch.testing.assert_close(at.value(y), -(y**2).sum(1))
    torch.testing.assert_close(at.gradient(y), -2 * y)
