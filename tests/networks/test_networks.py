"""Sizes, invariants and input checks of the networks."""

import math

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast import MLPEnergy, MLPInitializer, NoiseSchedule, ResNetEnergy, UNetInitializer
from cdrl_fast.networks.layers import StreamDropout, level_embedding, level_input
from cdrl_fast.networks.spectral_norm import (
    SpectralConv2d,
    SpectralNorm,
    fix_weights,
    release_weights,
)
from tests.conftest import randomize


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "options", "count"),
    [
        (ResNetEnergy, {}, 34_833_152),
        (ResNetEnergy, {"classes": 1000}, 35_346_176),
        (UNetInitializer, {}, 3_769_795),
        (UNetInitializer, {"classes": 1000, "blocks": 2}, 3_181_443),
        (MLPEnergy, {}, 1_217_920),
        (MLPInitializer, {}, 58_432),
    ],
)
def test_parameter_counts(network, options, count):
    assert parameters(network(**options)) == count


def test_level_input_known_answers():
    u = level_input(torch.tensor(NoiseSchedule().logsnr))
    expected = [4.7406, 162.3492, 319.9578, 477.5664, 635.1751, 792.7837, 950.3923]
    torch.testing.assert_close(1000 * u, torch.tensor(expected).double(), atol=5.1e-5, rtol=0)
    assert level_input(torch.tensor([100.0])) == level_input(torch.tensor([20.0]))


def test_level_embedding_entries():
    logsnr = torch.tensor([0.3], dtype=torch.float64)
    angle = 1000 * math.atan(math.exp(-0.15)) / (math.pi / 2)
    embedded = level_embedding(logsnr, 8)[0].tolist()
    frequencies = [math.exp(-math.log(1e4) * i / 3) for i in range(4)]
    expected = [math.sin(angle * f) for f in frequencies]
    expected += [math.cos(angle * f) for f in frequencies]
    assert embedded == pytest.approx(expected, abs=1e-9)


def test_spectral_norm_divides_by_the_largest_singular_value():
    torch.manual_seed(0)
    layer = SpectralConv2d(4, 6)
    layer.power_iteration(200)
    layer.eval()
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    torch.testing.assert_close(layer.normalized_weight() * largest, layer.weight)
    x = torch.randn(2, 4, 5, 5)
    expected = F.conv2d(x, layer.weight / largest, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_power_iteration_runs_once_per_training_forward():
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3)
    matrix = layer.weight.detach().flatten(1)
    v = F.normalize(matrix.T @ layer.u, dim=0)
    u = F.normalize(matrix @ v, dim=0)
    layer.train()
    layer(torch.randn(1, 2, 4, 4))
    torch.testing.assert_close(layer.u, u)
    torch.testing.assert_close(layer.v, v)
    layer.eval()
    layer(torch.randn(1, 2, 4, 4))
    torch.testing.assert_close(layer.u, u, atol=0, rtol=0)


def test_spectral_norm_gradient_treats_u_and_v_as_constants():
    torch.manual_seed(0)
    layer = SpectralConv2d(2, 3).double().eval()
    u, v = layer.u.clone(), layer.v.clone()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().clone().requires_grad_(True)
    normed = weight / (u @ weight.flatten(1) @ v)
    F.conv2d(x, normed, layer.bias.detach(), padding=1).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_fixed_weights_change_nothing_but_when_they_are_computed():
    torch.manual_seed(0)
    network = ResNetEnergy(1, 8, (1, 2), 1).eval()
    x, logsnr = torch.randn(2, 1, 8, 8), torch.ones(1)
    before = network(x, logsnr)
    fix_weights(network)
    torch.testing.assert_close(network(x, logsnr), before, atol=0, rtol=0)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, SpectralNorm):
                layer.weight += 1.0
    torch.testing.assert_close(network(x, logsnr), before, atol=0, rtol=0)
    release_weights(network)
    assert not torch.equal(network(x, logsnr), before)


@pytest.mark.parametrize("initializer", [UNetInitializer(1, 8, 32, (1, 2), 1), MLPInitializer()])
def test_untrained_initializer_returns_its_input(initializer):
    x = torch.randn(3, 1, 8, 8) if isinstance(initializer, UNetInitializer) else torch.randn(3, 2)
    initializer.eval()
    torch.testing.assert_close(initializer(x, torch.zeros(3)), x, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (ResNetEnergy(3, 8, (1, 2), 2, classes=4), (5, 3, 12, 8)),
        (MLPEnergy(2, 8, (1, 2), classes=4), (5, 2)),
        (UNetInitializer(3, 12, 8, (1, 2), 2, (6,), 0.1, classes=4), (5, 3, 12, 12)),
        (MLPInitializer(2, 64, 16, classes=4), (5, 2)),
    ],
)
def test_batching_levels_and_labels(network, shape):
    network = randomize(network).double()
    x = torch.randn(shape, dtype=torch.float64)
    logsnr = torch.linspace(-3, 3, 5, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3, 4])
    together = network(x, logsnr, label)
    assert together.shape == ((5,) if "Energy" in type(network).__name__ else shape)
    for i in range(5):
        alone = network(x[i : i + 1], logsnr[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    shared = network(x, logsnr[:1], label[2:3])
    torch.testing.assert_close(shared, network(x, logsnr[:1].expand(5), label[2:3].expand(5)))
    torch.testing.assert_close(network(x, logsnr), network(x, logsnr, torch.zeros(5).long()))
    assert not torch.allclose(network(x, logsnr), together)


def test_energy_is_a_sum_over_space():
    """Away from borders a shifted image has the same energy: the head sums over positions."""
    network = randomize(ResNetEnergy(1, 8, (1,), 1)).double()
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    x[..., 12:16, 12:16] = torch.randn(4, 4, dtype=torch.float64)
    logsnr = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(network(x, logsnr), network(x.roll((3, 5), (2, 3)), logsnr))


def test_dropout_takes_its_mask_from_a_stream():
    layer = StreamDropout(0.25).train()
    uniform = torch.tensor([[0.1, 0.25, 0.9, 0.2]])
    layer.uniform = lambda shape: uniform
    expected = torch.tensor([[0.0, 1 / 0.75, 1 / 0.75, 0.0]])
    torch.testing.assert_close(layer(torch.ones(1, 4)), expected)
    assert layer.eval()(torch.ones(1, 4)).tolist() == [[1.0] * 4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ResNetEnergy(1, 8, (1, 2), 1)(torch.zeros(2, 3, 8, 8), torch.zeros(2)),
         ValueError, r"\(batch, 1, H, W\).*divisible by 2, got \(2, 3, 8, 8\)"),
        (lambda: ResNetEnergy(1, 8, (1, 2), 1)(torch.zeros(2, 1, 7, 8), torch.zeros(2)),
         ValueError, "divisible by 2"),
        (lambda: MLPEnergy(2, 8, (1,))(torch.zeros(2, 3), torch.zeros(2)),
         ValueError, r"expected points \(batch, 2\), got \(2, 3\)"),
        (lambda: MLPInitializer()(torch.zeros(2, 3), torch.zeros(2)), ValueError, "points"),
        (lambda: UNetInitializer(1, 8, 8, (1,), 1)(torch.zeros(2, 1, 4, 4), torch.zeros(2)),
         ValueError, r"expected images \(batch, 1, 8, 8\)"),
        (lambda: MLPEnergy(2, 8, (1,))(torch.zeros(4, 2), torch.zeros(3)),
         ValueError, r"logsnr must have shape \(4,\) or \(1,\), got \(3,\)"),
        (lambda: MLPEnergy(2, 8, (1,))(torch.zeros(1, 2), torch.zeros(1), torch.ones(1).long()),
         ValueError, "unconditional; drop the label"),
        (lambda: MLPEnergy(2, 8, (1,), 3)(torch.zeros(1, 2), torch.zeros(1), torch.ones(1)),
         TypeError, "label must be integers"),
        (lambda: ResNetEnergy(width=7), ValueError, "even"),
        (lambda: ResNetEnergy(blocks=0), ValueError, "positive"),
        (lambda: MLPEnergy(dim=0), ValueError, "positive dim"),
        (lambda: MLPInitializer(width=32), ValueError, "multiple of 64"),
        (lambda: UNetInitializer(image_size=30), ValueError, "cannot be halved 2 times"),
        (lambda: UNetInitializer(dropout=1.0), ValueError, "0 <= dropout < 1"),
        (lambda: UNetInitializer(width=0), ValueError, "positive"),
        (lambda: ResNetEnergy(classes=-1), ValueError, "number of classes"),
        (lambda: ResNetEnergy(classes=("a", "a")), ValueError, "distinct names"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
