"""A folded initializer of points against its module."""

import pytest
import torch

from cdrl_fast import MLPInitializer
from cdrl_fast.engine.folding.mlp_initializer import fold_points
from cdrl_fast.engine.initializer import PointInitializer
from cdrl_fast.engine.select import frozen_initializer
from cdrl_fast.precision import resolve
from tests.conftest import randomize

CPU = torch.device("cpu")


@pytest.fixture(params=[(64, 0), (192, 3)], ids=["groups of 2", "groups of 6, labels"])
def network(request):
    torch.manual_seed(0)
    width, classes = request.param
    return randomize(MLPInitializer(3, width, 16, classes))


def arguments(network, batch=9):
    label = torch.arange(batch) % (network.num_classes + 1) if network.num_classes else None
    return torch.randn(batch, 3), torch.linspace(-5, 9.8, batch), label


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_the_frozen_initializer_follows_the_network(network, precision):
    """In float32 under bf16, too: the proposal is as exact as the state."""
    x, logsnr, label = arguments(network)
    precision = resolve(precision, CPU, has_kernels=True)
    frozen = frozen_initializer(network, device=CPU, precision=precision)
    assert type(frozen) is PointInitializer
    x, logsnr = x.to(precision.state), logsnr.to(precision.state)
    tolerance = 1e-12 if precision.name == "fp64" else 1e-4
    for seed in (1, 2):
        for level in (logsnr, logsnr[:1]):
            expected = network.double()(x.double(), level.double(), label)
            actual = frozen.forward(x, *frozen.level_inputs(level, label))
            assert actual.dtype == precision.state
            assert (actual - expected).abs().max() <= tolerance * (expected - x).abs().max()
        randomize(network, seed)
        frozen.refresh()


@torch.no_grad()
def test_rows_do_not_depend_on_other_labels_in_the_batch(network):
    _, logsnr, label = arguments(network)
    folded = fold_points(network, CPU, torch.float32)
    scale, shift = folded.at(logsnr[:1], label)
    assert scale.shape == shift.shape == (1 if label is None else 9, network.norm2.num_channels)
    if label is not None:
        for i in range(9):
            one = folded.at(logsnr[:1], label[i : i + 1])
            assert torch.equal(torch.cat(one), torch.stack((scale[i], shift[i])))


def test_folding_leaves_the_network_alone_and_shares_nothing(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold_points(network, CPU, torch.float32)
    layers = (folded.stem, folded.centred1, folded.norm1, folded.centred2, folded.norm2,
              folded.inner, folded.condition, (folded.head,), *folded.embedding)  # fmt: skip
    for layer in layers:
        for tensor in layer:
            tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
