"""Norm and SiLU for training: the result and all gradients, against float64."""

import pytest
import torch

from cdrl_fast import BackendUnavailable
from cdrl_fast.ops.train_norm_silu import train_norm_silu

# Batch, channels, height, width, groups: of 1, 2, 3, 5 and all channels, across blocks; one pixel.
SHAPES = [
    (64, 32, 8, 8, 32), (3, 64, 7, 5, 32), (2, 96, 3, 4, 32), (5, 80, 1, 2, 16), (1, 48, 6, 1, 1),
    (4, 16, 1, 1, 4),
]  # fmt: skip


def arguments(shape, *, row=True, mean=2.0):
    """Return [x, weight, bias, row], the number of groups, and the gradient by the result."""
    batch, channels, height, width, groups = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    x = 3.0 * draw(batch, channels, height, width) + mean
    tensors = [x, 1.0 + 0.2 * draw(channels), 0.3 * draw(channels)]
    tensors += [0.3 * draw(batch, 2 * channels)] if row else []
    return tensors, groups, draw(*x.shape)


def result_and_gradients(tensors, groups, grad, **options):
    leaves = [t.clone().requires_grad_() for t in tensors]
    row = leaves[3] if len(leaves) > 3 else None
    y = train_norm_silu(*leaves[:3], groups, row=row, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def close(actual, expected, tolerance=5e-6):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs() <= tolerance * b.abs().max()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("row", [True, False], ids=["row", "plain"])
@pytest.mark.parametrize("activate", [True, False], ids=["silu", "norm"])
def test_native_is_the_reference_in_float64(variant, shape, row, activate):
    tensors, groups, grad = arguments(shape, row=row)
    expected = result_and_gradients(
        [t.double() for t in tensors], groups, grad.double(), activate=activate
    )
    actual = result_and_gradients(tensors, groups, grad, activate=activate, backend="native")
    close(actual, expected, 2e-5 if shape[2] * shape[3] < 3 else 5e-6)
    permuted = [tensors[0].contiguous(memory_format=torch.channels_last), *tensors[1:]]
    assert all(
        map(torch.equal, result_and_gradients(permuted, groups, grad, activate=activate), actual)
    )


def test_a_group_of_one_number_per_sample(variant):
    """The result does not depend on x, and the gradient by x is 0: the deviation is √ε."""
    tensors, _, grad = arguments((3, 16, 1, 1, 16))
    expected = result_and_gradients([t.double() for t in tensors], 16, grad.double())
    actual = result_and_gradients(tensors, 16, grad, backend="native")
    for i in (0, 3, 4):  # the result, and the gradients of bias and row
        close([actual[i]], [expected[i]])
    assert max(float(actual[i].abs().max()) for i in (1, 2)) <= 1e-3


def test_large_means_and_large_arguments_of_silu(variant):
    """Variances are not differences of large numbers, and e^x does not overflow."""
    tensors, groups, grad = arguments((2, 32, 8, 8, 8), mean=300.0)
    tensors[1] *= 60.0
    expected = result_and_gradients([t.double() for t in tensors], groups, grad.double())
    actual = result_and_gradients(tensors, groups, grad, backend="native")
    close(actual, expected, 1e-4)


def test_threads_change_nothing(variant):
    tensors, groups, grad = arguments((64, 32, 8, 8, 32))
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(result_and_gradients(tensors, groups, grad))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_non_finite_numbers_stay_in_their_sample(variant):
    tensors, groups, grad = arguments((5, 32, 4, 4, 8))
    expected = result_and_gradients(tensors, groups, grad)
    tensors[0][2, 3, 1, 1], grad[4, 0, 3, 3] = float("nan"), float("inf")
    y, x_grad, *_, row_grad = result_and_gradients(tensors, groups, grad)
    assert y[2].isnan().any()
    assert not x_grad[4].isfinite().all()
    assert torch.equal(y[[0, 1, 3, 4]], expected[0][[0, 1, 3, 4]])
    assert torch.equal(x_grad[[0, 1, 3]], expected[1][[0, 1, 3]])
    assert torch.equal(row_grad[[0, 1, 3]], expected[4][[0, 1, 3]])


def test_calls_that_the_native_backend_leaves_to_torch():
    tensors, groups, _ = arguments((2, 32, 4, 4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        train_norm_silu(*tensors[:3], groups)
        with pytest.raises(BackendUnavailable, match="without autocast"):
            train_norm_silu(*tensors[:3], groups, backend="native")
    narrow, groups, _ = arguments((2, 24, 4, 4, 8))
    assert train_norm_silu(*narrow[:3], groups).shape == narrow[0].shape
    with pytest.raises(BackendUnavailable, match="multiple of 16"):
        train_norm_silu(*narrow[:3], groups, backend="native")


def test_errors():
    (x, weight, bias, row), groups, _ = arguments((2, 32, 4, 4, 8))
    with pytest.raises(TypeError, match="one floating dtype, got .*bias torch.float64"):
        train_norm_silu(x, weight, bias.double(), groups)
    with pytest.raises(ValueError, match="groups that divide"):
        train_norm_silu(x, weight, bias, 5)
    with pytest.raises(ValueError, match="groups that divide"):
        train_norm_silu(x[0], weight, bias, groups)
    with pytest.raises(ValueError, match="weight must be"):
        train_norm_silu(x, weight[1:], bias, groups)
    with pytest.raises(ValueError, match="row must be"):
        train_norm_silu(x, weight, bias, groups, row=row[:1])
