"""Convolution for training: the result and its three gradients, against float64."""

import pytest
import torch

from cdrl_fast import BackendUnavailable
from cdrl_fast.ops.train_conv3x3 import train_conv3x3

# Batch, channels in and out, height, width: odd sides, one pixel, channels that need padding.
SHAPES = [
    (64, 32, 32, 8, 8), (3, 48, 16, 7, 5), (1, 16, 64, 1, 1), (2, 1, 20, 9, 4), (5, 33, 3, 6, 11),
    (1, 16, 16, 2, 90),
]  # fmt: skip
CHANNELS_LAST = torch.channels_last


def arguments(shape):
    """Return [x, weight, bias] and the gradient by the result."""
    batch, ins, outs, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    x = draw(batch, ins, height, width)
    weight = draw(outs, ins, 3, 3) / (3 * ins**0.5)
    return [x, weight, draw(outs)], draw(batch, outs, height, width)


def result_and_gradients(tensors, grad, **options):
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = train_conv3x3(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def close(actual, expected, tolerance=2e-6):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs() <= tolerance * b.abs().max()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_reference_in_float64(variant, shape):
    tensors, grad = arguments(shape)
    expected = result_and_gradients([t.double() for t in tensors], grad.double())
    close(result_and_gradients(tensors, grad, backend="native"), expected)
    # The memory format of the arguments does not matter.
    permuted = [t.contiguous(memory_format=CHANNELS_LAST) for t in tensors[:2]]
    actual = result_and_gradients(
        [*permuted, tensors[2]], grad.contiguous(memory_format=CHANNELS_LAST)
    )
    assert all(map(torch.equal, actual, result_and_gradients(tensors, grad)))


@pytest.mark.parametrize("size", [2, 8], ids=["patches of 2", "patches of 4"])
def test_errors_are_about_those_of_plain_sums(variant, size):
    """The errors stay well below those of patches of 4 with the points 0, ±1, ±2.

    Relative errors with 64 channels: torch 3e-7 to 5e-7, those points 17e-7.
    """
    tensors, grad = arguments((16, 64, 64, size, size))
    expected = result_and_gradients([t.double() for t in tensors], grad.double())
    for a, b in zip(result_and_gradients(tensors, grad), expected, strict=True):
        assert (a - b).square().mean().sqrt() <= 11e-7 * b.square().mean().sqrt()


def test_maps_are_channels_last_and_sums_do_not_depend_on_threads(variant):
    tensors, grad = arguments((64, 32, 48, 8, 8))
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(result_and_gradients(tensors, grad))
    finally:
        torch.set_num_threads(threads)
    one_thread, *others = runs
    for other in others:
        assert torch.equal(one_thread[0], other[0])
        assert torch.equal(one_thread[1], other[1])
        close(other[2:], one_thread[2:])
    assert all(m.is_contiguous(memory_format=CHANNELS_LAST) for m in one_thread[:2])


def test_an_input_that_can_be_recomputed_is_not_stored(variant):
    tensors, grad = arguments((4, 16, 16, 5, 6))
    expected = result_and_gradients([tensors[0].exp(), *tensors[1:]], grad)
    calls = []

    def again():
        calls.append(torch.is_grad_enabled())
        return leaves[0].exp()

    leaves = [t.clone().requires_grad_() for t in tensors]
    saved = []

    def save(tensor):
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        x = leaves[0].exp()
        before = len(saved)
        y = train_conv3x3(x, *leaves[1:], again=again)
    assert saved[before:] == [tensors[1].shape]
    gradients = torch.autograd.grad(y, leaves, grad)
    assert calls == [False]
    close([y, *gradients], [expected[0], expected[1] * tensors[0].exp(), *expected[2:]], 1e-6)


def test_an_input_that_needs_no_gradient(variant):
    tensors, grad = arguments((3, 1, 16, 8, 8))
    expected = result_and_gradients(tensors, grad)
    weight, bias = (t.clone().requires_grad_() for t in tensors[1:])
    gradients = torch.autograd.grad(train_conv3x3(tensors[0], weight, bias), (weight, bias), grad)
    assert all(map(torch.equal, gradients, expected[2:]))


def test_non_finite_numbers_stay_in_their_sample(variant):
    tensors, grad = arguments((5, 16, 16, 4, 4))
    expected = result_and_gradients(tensors, grad)
    tensors[0][2, 3, 1, 1], grad[4, 0, 3, 3] = float("nan"), float("inf")
    y, x_grad, *_ = result_and_gradients(tensors, grad)
    assert not y[2].isfinite().all()
    assert not x_grad[4].isfinite().all()
    assert torch.equal(y[[0, 1, 3, 4]], expected[0][[0, 1, 3, 4]])
    assert torch.equal(x_grad[:4], expected[1][:4])


def test_calls_that_the_native_backend_leaves_to_torch():
    tensors, _ = arguments((2, 16, 16, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert train_conv3x3(*tensors).dtype == torch.bfloat16
        with pytest.raises(BackendUnavailable, match="without autocast"):
            train_conv3x3(*tensors, backend="native")
    half = [t.to(torch.bfloat16) for t in tensors]
    assert train_conv3x3(*half).dtype == torch.bfloat16
    with pytest.raises(BackendUnavailable, match="float32"):
        train_conv3x3(*half, backend="native")
    assert train_conv3x3(tensors[0][:0], *tensors[1:]).shape == (0, 16, 4, 4)
    with pytest.raises(BackendUnavailable, match="at least one pixel"):
        train_conv3x3(tensors[0][:0], *tensors[1:], backend="native")


def test_a_second_derivative_is_refused(variant):
    tensors, grad = arguments((1, 16, 16, 4, 4))
    leaves = [t.requires_grad_() for t in tensors]
    y = train_conv3x3(*leaves)
    (first,) = torch.autograd.grad(y, leaves[:1], grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_errors():
    (x, weight, bias), _ = arguments((2, 16, 16, 4, 4))
    with pytest.raises(TypeError, match="one floating dtype"):
        train_conv3x3(x, weight.double(), bias)
    for wrong in ((x[0], weight, bias), (x[:, 1:], weight, bias), (x, weight, bias[1:])):
        with pytest.raises(ValueError, match="expected x"):
            train_conv3x3(*wrong)
    with pytest.raises(ValueError, match="backend must be one of"):
        train_conv3x3(x, weight, bias, backend="fast")
