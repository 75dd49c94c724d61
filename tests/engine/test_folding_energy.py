"""Folded networks against the modules they come from, in float64."""

import copy

import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, ResNetEnergy
from cdrl_fast.engine.folding.energy import fold_mlp, fold_resnet
from cdrl_fast.ops.energy_gradient import EnergyGradient
from cdrl_fast.ops.mlp_chain import value_and_gradient
from tests.conftest import randomize

CPU = torch.device("cpu")
# Image channels, width, multipliers, blocks and classes of a network; height and width.
CASES = {
    "one stage, odd size": ((1, 12, (1,), 1, 0), 9, 13),
    "two stages": ((2, 8, (1, 2), 2, 0), 10, 14),
    "labels": ((3, 16, (1, 2, 2), 1, 5), 28, 28),
    "narrowing": ((3, 10, (2, 1), 2, 0), 8, 8),
    "large images": ((1, 4, (1, 2, 2, 2), 1, 0), 64, 64),
}


@pytest.fixture(params=[*CASES, "digits"])
def case(request):
    """Return an energy in float64, and a batch of states, levels and labels."""
    torch.manual_seed(0)
    if request.param == "digits":
        energy, height, width = CDRL.from_pretrained("digits").energy, 8, 8
    else:
        options, height, width = CASES[request.param]
        energy = randomize(ResNetEnergy(*options), std=0.05)
    batch = 5
    y = torch.randn(batch, energy.stem.in_channels, height, width, dtype=torch.float64)
    logsnr = torch.linspace(-5, 9.8, batch, dtype=torch.float64)
    classes = energy.num_classes
    label = torch.arange(batch) % (classes + 1) if classes else None
    return energy.double().eval(), y, logsnr, label


def test_the_folded_network_is_the_module(case):
    """Value to 1e-12 and gradient to 1e-10, which needs every weight and row."""
    energy, y, logsnr, label = case
    y.requires_grad_(True)
    expected = energy(y, logsnr, label)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), y)
    folded = fold_resnet(energy, CPU, torch.float64)
    operation = EnergyGradient(folded.weights, *y.shape[-2:])
    rows, head = folded.at(logsnr, label)
    value, gradient = operation.value_and_gradient(y.detach(), rows, head)
    assert operation.backend == "reference"
    assert ((value - expected).abs() <= 1e-12 * expected.abs().max()).all()
    error = (gradient - expected_gradient).abs()
    assert (error <= 1e-10 * expected_gradient.abs().max()).all()
    assert torch.equal(operation.value(y.detach(), rows, head), value)


def test_one_level_serves_a_batch(case):
    energy, y, logsnr, label = case
    folded = fold_resnet(energy, CPU, torch.float64)
    operation = EnergyGradient(folded.weights, *y.shape[-2:])
    label = None if label is None else label[1:2]
    expected = energy(y, logsnr[2:3], label)
    rows, head = folded.at(logsnr[2:3], label)
    assert rows.shape[0] == head.shape[0] == 1
    value, _ = operation.value_and_gradient(y, rows, head)
    assert ((value - expected).abs() <= 1e-12 * expected.abs().max()).all()


def test_folding_leaves_the_network_alone_and_shares_nothing(case):
    energy = case[0]
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    folded = fold_resnet(energy, CPU, torch.float64)
    for tensor in (*folded.weights.tensors(), folded.head, folded.level_inputs.bias):
        tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in energy.state_dict().items())


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("size", [(2, 16, (1, 2, 2)), (5, 12, (1, 1)), (1, 8, (2,))])
def test_the_folded_network_of_points_is_the_module(size, classes):
    network = randomize(MLPEnergy(*size, classes=classes).double())
    n = 40
    y = torch.randn(n, size[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y.requires_grad_(True)
    folded = fold_mlp(network, CPU, torch.float64)
    labels = [None] if classes == 0 else [None, torch.arange(n) % (classes + 1), torch.tensor([2])]
    for logsnr in (torch.tensor([0.3]).double(), torch.linspace(-5, 9, n).double()):
        for label in labels:
            expected = network(y, logsnr, label)
            (expected_gradient,) = torch.autograd.grad(expected.sum(), y)
            rows = folded.at(logsnr, label)
            assert len(rows) == max(len(logsnr), 1 if label is None else len(label))
            value, gradient = value_and_gradient(folded.program, y.detach(), rows)
            assert (value - expected).abs().max() < 1e-12
            assert (gradient - expected_gradient).abs().max() < 1e-10


def test_folding_leaves_the_network_of_points_alone():
    network = MLPEnergy(2, 16, (1, 2))
    before = copy.deepcopy(network.state_dict())
    fold_mlp(network, CPU, torch.float32)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
