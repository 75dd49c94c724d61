"""Norm and SiLU that are being learned: the result and all gradients, against float64's."""

import pytest
import torch

from cdrl_fast import BackendUnavailable
from cdrl_fast.ops.train_norm_silu import train_norm_silu

# Batch, channels, height, width, groups: of 1, 2, 3, 5 and all channels, across blocks; one pixel.
SHAPES = [
    (64, 32, 8, 8, 32), (3, 64, 7, 5, 32), (2, 96, 3, 4, 32), (5, 80, 1, 2, 16), (1, 48, 6, 1, 1),
    (4, 16, 1, 1, 4),
]  # fmt: skip


def made(shape, *, row=True, mean=2.0):
    batch, channels, height, width, groups = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    x = 3.0 * draw(batch, channels, height, width) + mean
    given = [x, 1.0 + 0.2 * draw(channels), 0.3 * draw(channels)]
    given += [0.3 * draw(batch, 2 * channels)] if row else []
    return given, groups, draw(*x.shape)


def computed(given, groups, grad, **options):
    """The result and the gradients of all that is given."""
    leaves = [t.clone().requires_grad_() for t in given]
    row = leaves[3] if len(leaves) > 3 else None
    y = train_norm_silu(*leaves[:3], groups, row=row, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def close(got, wanted, tolerance=5e-6):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs() <= tolerance * b.abs().max()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("row", [True, False], ids=["row", "plain"])
@pytest.mark.parametrize("activate", [True, False], ids=["silu", "norm"])
def test_native_is_the_reference_in_float64(variant, shape, row, activate):
    given, groups, grad = made(shape, row=row)
    wanted = computed([t.double() for t in given], groups, grad.double(), activate=activate)
    got = computed(given, groups, grad, activate=activate, backend="native")
    close(got, wanted, 2e-5 if shape[2] * shape[3] < 3 else 5e-6)
    turned = [given[0].contiguous(memory_format=torch.channels_last), *given[1:]]
    assert all(map(torch.equal, computed(turned, groups, grad, activate=activate), got))


def test_a_group_of_one_number_a_sample(variant):
    """Nothing of x is left, and no gradient in it: the deviation is √ε."""
    given, _, grad = made((3, 16, 1, 1, 16))
    wanted = computed([t.double() for t in given], 16, grad.double())
    got = computed(given, 16, grad, backend="native")
    for of in (0, 3, 4):  # the result, and the gradients of bias and row
        close([got[of]], [wanted[of]])
    assert max(float(got[of].abs().max()) for of in (1, 2)) <= 1e-3


def test_far_means_and_arguments(variant):
    """Variances are not differences of large numbers, and e^x does not overflow."""
    given, groups, grad = made((2, 32, 8, 8, 8), mean=300.0)
    given[1] *= 60.0
    wanted = computed([t.double() for t in given], groups, grad.double())
    got = computed(given, groups, grad, backend="native")
    close(got, wanted, 1e-4)


def test_threads_change_nothing(variant):
    given, groups, grad = made((64, 32, 8, 8, 32))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(computed(given, groups, grad))
    finally:
        torch.set_num_threads(threads)
    for more in found[1:]:
        assert all(map(torch.equal, more, found[0]))


def test_a_broken_sample_breaks_no_other(variant):
    given, groups, grad = made((5, 32, 4, 4, 8))
    whole = computed(given, groups, grad)
    given[0][2, 3, 1, 1], grad[4, 0, 3, 3] = float("nan"), float("inf")
    y, x_grad, *_, row_grad = computed(given, groups, grad)
    assert y[2].isnan().any()
    assert not x_grad[4].isfinite().all()
    assert torch.equal(y[[0, 1, 3, 4]], whole[0][[0, 1, 3, 4]])
    for got, wanted in ((x_grad, whole[1]), (row_grad, whole[4])):
        assert torch.equal(got[[0, 1, 3]], wanted[[0, 1, 3]])


def test_what_the_native_room_leaves_to_torch():
    given, groups, _ = made((2, 32, 4, 4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        train_norm_silu(*given[:3], groups)
        with pytest.raises(BackendUnavailable, match="without autocast"):
            train_norm_silu(*given[:3], groups, backend="native")
    narrow, groups, _ = made((2, 24, 4, 4, 8))
    assert train_norm_silu(*narrow[:3], groups).shape == narrow[0].shape
    with pytest.raises(BackendUnavailable, match="multiple of 16"):
        train_norm_silu(*narrow[:3], groups, backend="native")


def test_errors():
    (x, weight, bias, row), groups, _ = made((2, 32, 4, 4, 8))
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
