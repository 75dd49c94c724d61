"""A network's value and gradient on the operations for GPUs, against autograd on the module."""

import pytest
import torch

from cdrl_fast import CDRL, BackendUnavailable, NoiseSchedule, ResNetEnergy, Sampler
from cdrl_fast.engine.energy import GpuImageEnergy
from cdrl_fast.engine.folding.energy import fold_resnet
from cdrl_fast.engine.resnet_gpu import ResNetPasses, level_maps
from cdrl_fast.engine.terms import Terms
from cdrl_fast.precision import resolve
from tests.conftest import randomize

CPU = torch.device("cpu")
PRECISIONS = {name: resolve(name, CPU, has_kernels=False) for name in ("fp64", "fp32", "fp16")}
# Image channels, width, multipliers, blocks; classes; height, width and batch.
CASES = {
    "one stage": ((1, 12, (1,), 2), 0, 7, 9, 3),
    "widening": ((3, 32, (1, 2, 2), 2), 3, 12, 8, 5),
    "narrowing": ((2, 40, (2, 1), 1), 0, 8, 8, 2),
    # A block with and one without shortcut: the interpreter takes milliseconds per program.
    "small": ((3, 32, (1, 2), 1), 3, 4, 8, 2),
}


def example(name):
    """Return a network, states, levels and labels of a case."""
    options, classes, height, width, batch = CASES[name]
    torch.manual_seed(0)
    energy = randomize(ResNetEnergy(*options, classes=classes), std=0.05)
    y = torch.randn(batch, options[0], height, width)
    label = torch.arange(batch) % (classes + 1) if classes else None
    return energy, y, torch.linspace(-5, 9.8, batch), label


def run(energy, y, logsnr, label, precision, backend="reference"):
    """Return energies and gradients, from poisoned buffers that a larger batch has enlarged."""
    precision = PRECISIONS[precision]
    folded = fold_resnet(energy, CPU, precision.state)
    passes = ResNetPasses(folded.weights, *y.shape[-2:], precision=precision, backend=backend)
    maps = level_maps(folded.weights, *folded.at(logsnr, label), precision)
    y = y.to(precision.state)
    if backend == "reference":
        shared = level_maps(folded.weights, *folded.at(logsnr[:1], None), precision)
        passes.value_and_gradient(torch.cat([y, y]), shared)
    for buffer in passes.buffers():
        buffer.fill_(float("nan") if buffer.is_floating_point() else 0x5A5A5A5A)
    value, gradient = passes.value_and_gradient(y, maps)
    torch.testing.assert_close(passes.value(y, maps), value, rtol=1e-6, atol=0)
    return value, gradient


def exact(energy, y, logsnr, label):
    """Return the module's value and gradient in float64."""
    y = y.double().requires_grad_(True)
    value = energy.double()(y, logsnr.double(), label)
    return value.detach(), torch.autograd.grad(value.sum(), y)[0]


def error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CASES)
def test_float64_is_the_module(name):
    energy, *rest = example(name)
    value, gradient = run(energy.double(), rest[0].double(), rest[1].double(), rest[2], "fp64")
    expected, expected_gradient = exact(energy, rest[0], rest[1], rest[2])
    assert error(value, expected) <= 1e-10
    assert error(gradient, expected_gradient) <= 1e-10


@pytest.mark.parametrize(
    ("precision", "value_error", "gradient_error"), [("fp32", 1e-4, 1e-4), ("fp16", 5e-3, 0.1)]
)
@pytest.mark.parametrize("name", CASES)
def test_reference(name, precision, value_error, gradient_error):
    energy, *rest = example(name)
    value, gradient = run(energy, *rest, precision)
    expected, expected_gradient = exact(energy, *rest)
    assert error(value, expected) <= value_error
    assert error(gradient, expected_gradient) <= gradient_error


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_triton_agrees(interpreter, precision):
    arguments = (*example("small"), precision)
    value, gradient = run(*arguments, backend="triton")
    expected, expected_gradient = run(*arguments)
    # Sums in another order flip single signs.
    assert error(value, expected) <= (1e-6 if precision == "fp32" else 1e-3)
    assert error(gradient, expected_gradient) <= (1e-4 if precision == "fp32" else 0.05)


def test_takes_new_weights_into_the_same_memory():
    energy, y, logsnr, label = example("one stage")
    frozen = GpuImageEnergy(energy, device=CPU, precision=PRECISIONS["fp32"], backend="reference")
    frozen.at(logsnr, Terms(labels=(label,))).gradient(y)
    passes = frozen.operation(y.shape)
    addresses = [t.data_ptr() for t in passes.weights()]
    randomize(energy, std=0.3)
    frozen.refresh()
    assert [t.data_ptr() for t in passes.weights()] == addresses
    _, expected = exact(energy, y, logsnr, label)
    assert error(frozen.at(logsnr, Terms(labels=(label,))).gradient(y), expected) <= 1e-4


def test_working_memory_is_what_a_gradient_takes():
    energy, y, logsnr, label = example("widening")
    frozen = GpuImageEnergy(energy, device=CPU, precision=PRECISIONS["fp16"], backend="reference")
    frozen.at(logsnr, Terms(labels=(label,))).gradient(y)
    allocated = sum(buffer.nbytes for buffer in frozen.operation(y.shape).buffers())
    assert frozen.working_memory(len(y), y.shape[1:]) == allocated


def test_sampler_on_triton(interpreter):
    torch.manual_seed(0)
    model = CDRL(
        randomize(ResNetEnergy(1, 32, (1,), 1, classes=2), std=0.02),
        None,
        NoiseSchedule(levels=1, steps=1),
        sample_shape=(1, 4, 4),
    )
    for options in ({"label": [1, 2]}, {"label": [2, 1], "guidance": 1.0}):
        expected = Sampler(model, precision="fp32").sample(2, seed=1, **options)
        actual = Sampler(model, precision="fp32", backend="triton").sample(2, seed=1, **options)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_precisions_of_tensor_cores_need_a_gpu(point_model, precision):
    with pytest.raises(BackendUnavailable, match=precision):
        Sampler(point_model, precision=precision)


def test_refuses_sizes():
    folded = fold_resnet(example("widening")[0], CPU, torch.float32)
    with pytest.raises(ValueError, match="multiples of 4, got 6"):
        ResNetPasses(folded.weights, 6, 8, precision=PRECISIONS["fp32"])
