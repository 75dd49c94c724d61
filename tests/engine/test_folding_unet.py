"""A folded initializer's rows, and the frozen initializer, against the module."""

import pytest
import torch

from cdrl_fast import CDRL, MLPInitializer, UNetInitializer
from cdrl_fast.engine.autograd import FrozenNetwork
from cdrl_fast.engine.folding.unet import fold_unet
from cdrl_fast.engine.initializer import ImageInitializer
from cdrl_fast.engine.select import frozen_initializer
from cdrl_fast.networks.unet import UNetBlock
from cdrl_fast.precision import resolve
from tests.conftest import randomize

CPU = torch.device("cpu")


@pytest.fixture(params=[0, 3], ids=["unconditional", "labels"])
def network(request):
    torch.manual_seed(0)
    return randomize(UNetInitializer(2, 8, 12, (1, 2), 1, (4,), classes=request.param))


def arguments(network, batch=5):
    x = torch.randn(batch, 2, 8, 8)
    label = torch.arange(batch) % (network.num_classes + 1) if network.num_classes else None
    return x, torch.linspace(-5, 9.8, batch), label


@torch.no_grad()
def test_rows_are_what_the_blocks_compute(network):
    """Each block's scale and shift, as the module computes them, side by side."""
    x, logsnr, label = arguments(network.double())
    outputs = []
    for module in network.modules():
        if isinstance(module, UNetBlock):
            module.condition.register_forward_hook(lambda m, i, out: outputs.append(out))
    network(x.double(), logsnr.double(), label)
    rows = fold_unet(network, CPU, torch.float64).at(logsnr.double(), label)
    torch.testing.assert_close(rows, torch.cat(outputs, dim=1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_rows_do_not_depend_on_other_labels_in_the_batch(network):
    _, logsnr, label = arguments(network)
    folded = fold_unet(network, CPU, torch.float32)
    rows = folded.at(logsnr[:1], label)
    assert rows.dtype == torch.float32
    assert len(rows) == (1 if label is None else 5)
    if label is not None:
        for i in range(5):
            assert torch.equal(folded.at(logsnr[:1], label[i : i + 1]), rows[i : i + 1])
        assert torch.equal(folded.at(logsnr[:1], None), rows[:1])


def test_folding_leaves_the_network_alone_and_shares_nothing(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold_unet(network, CPU, torch.float64)
    for tensor in (*folded.weights.tensors(), *folded.level_inputs.blocks):
        tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_the_frozen_initializer_follows_the_network(network, precision):
    """In float32 under bf16, too: the proposal is as exact as the state."""
    x, logsnr, label = arguments(network)
    precision = resolve(precision, CPU, has_kernels=True)
    frozen = frozen_initializer(network, device=CPU, precision=precision)
    assert type(frozen) is ImageInitializer
    x, logsnr = x.to(precision.state), logsnr.to(precision.state)
    for _ in range(2):
        expected = network.double()(x.double(), logsnr.double(), label)
        actual = frozen.forward(x, *frozen.level_inputs(logsnr, label))
        assert actual.dtype == precision.state
        tolerance = 1e-12 if precision.name == "fp64" else 2e-5
        assert ((actual - expected).abs() <= tolerance * expected.abs().max()).all()
        randomize(network, seed=1)
        frozen.refresh()


@pytest.mark.parametrize("base", [UNetInitializer, MLPInitializer])
def test_other_initializers_keep_their_module(base):
    network = type("Other", (base,), {})()
    frozen = frozen_initializer(
        network, device=CPU, precision=resolve("fp32", CPU, has_kernels=True)
    )
    assert type(frozen) is FrozenNetwork


def test_an_explicit_reference_backend():
    network = CDRL.from_pretrained("digits").initializer
    precision = resolve("fp32", CPU, has_kernels=False)
    frozen = frozen_initializer(network, device=CPU, precision=precision, backend="reference")
    assert frozen.operation.backend == "reference"
