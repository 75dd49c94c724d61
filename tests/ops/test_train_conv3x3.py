"""The convolution that is being learned: its three gradients, against float64's."""

import pytest
import torch

from cdrl_fast import BackendUnavailable
from cdrl_fast.ops.train_conv3x3 import train_conv3x3

# Batch, channels in and out, height, width: odd sides, one pixel, channels that fill no block.
SHAPES = [
    (64, 32, 32, 8, 8), (3, 48, 16, 7, 5), (1, 16, 64, 1, 1), (2, 1, 20, 9, 4), (5, 33, 3, 6, 11),
    (1, 16, 16, 2, 90),
]  # fmt: skip
CHANNELS_LAST = torch.channels_last


def made(shape):
    batch, ins, outs, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    x = draw(batch, ins, height, width)
    weight = draw(outs, ins, 3, 3) / (3 * ins**0.5)
    return [x, weight, draw(outs)], draw(batch, outs, height, width)


def computed(given, grad, **options):
    """The result and the gradients of all that is given."""
    leaves = [t.clone().requires_grad_() for t in given]
    y = train_conv3x3(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def close(got, wanted, tolerance=2e-6):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs() <= tolerance * b.abs().max()).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_is_the_reference_in_float64(variant, shape):
    given, grad = made(shape)
    wanted = computed([t.double() for t in given], grad.double())
    close(computed(given, grad, backend="native"), wanted)
    # The layout of what comes in does not matter.
    turned = [t.contiguous(memory_format=CHANNELS_LAST) for t in given[:2]]
    again = computed([*turned, given[2]], grad.contiguous(memory_format=CHANNELS_LAST))
    assert all(map(torch.equal, again, computed(given, grad)))


@pytest.mark.parametrize("size", [2, 8], ids=["patches of 2", "patches of 4"])
def test_rounding_stays_that_of_plain_sums(variant, size):
    """64 channels: torch's own rounding is 3e-7 to 5e-7 of the result; from the points 0, ±1, ±2
    patches of 4 would give 17e-7."""
    given, grad = made((16, 64, 64, size, size))
    wanted = computed([t.double() for t in given], grad.double())
    for a, b in zip(computed(given, grad), wanted, strict=True):
        assert (a - b).square().mean().sqrt() <= 11e-7 * b.square().mean().sqrt()


def test_maps_are_channels_last_and_sums_do_not_depend_on_threads(variant):
    given, grad = made((64, 32, 48, 8, 8))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(computed(given, grad))
    finally:
        torch.set_num_threads(threads)
    for one, more in ((found[0], found[1]), (found[0], found[2])):
        assert torch.equal(one[0], more[0])
        assert torch.equal(one[1], more[1])
        close(more[2:], one[2:])
    assert all(m.is_contiguous(memory_format=CHANNELS_LAST) for m in found[0][:2])


def test_what_can_be_made_again_is_not_kept(variant):
    given, grad = made((4, 16, 16, 5, 6))
    wanted = computed([given[0].exp(), *given[1:]], grad)
    calls = []

    def again():
        calls.append(torch.is_grad_enabled())
        return leaves[0].exp()

    leaves = [t.clone().requires_grad_() for t in given]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        x = leaves[0].exp()
        held = len(kept)
        y = train_conv3x3(x, *leaves[1:], again=again)
    assert kept[held:] == [given[1].shape]
    found = torch.autograd.grad(y, leaves, grad)
    assert calls == [False]
    close([y, *found], [wanted[0], wanted[1] * given[0].exp(), *wanted[2:]], 1e-6)


def test_an_input_that_needs_no_gradient(variant):
    given, grad = made((3, 1, 16, 8, 8))
    wanted = computed(given, grad)
    weight, bias = (t.clone().requires_grad_() for t in given[1:])
    found = torch.autograd.grad(train_conv3x3(given[0], weight, bias), (weight, bias), grad)
    assert all(map(torch.equal, found, wanted[2:]))


def test_a_broken_sample_breaks_no_other(variant):
    given, grad = made((5, 16, 16, 4, 4))
    whole = computed(given, grad)
    given[0][2, 3, 1, 1], grad[4, 0, 3, 3] = float("nan"), float("inf")
    y, x_grad, *_ = computed(given, grad)
    assert not y[2].isfinite().all()
    assert not x_grad[4].isfinite().all()
    assert torch.equal(y[[0, 1, 3, 4]], whole[0][[0, 1, 3, 4]])
    assert torch.equal(x_grad[:4], whole[1][:4])


def test_what_the_native_room_leaves_to_torch():
    given, _ = made((2, 16, 16, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert train_conv3x3(*given).dtype == torch.bfloat16
        with pytest.raises(BackendUnavailable, match="without autocast"):
            train_conv3x3(*given, backend="native")
    half = [t.to(torch.bfloat16) for t in given]
    assert train_conv3x3(*half).dtype == torch.bfloat16
    with pytest.raises(BackendUnavailable, match="float32"):
        train_conv3x3(*half, backend="native")
    assert train_conv3x3(given[0][:0], *given[1:]).shape == (0, 16, 4, 4)
    with pytest.raises(BackendUnavailable, match="needs a pixel"):
        train_conv3x3(given[0][:0], *given[1:], backend="native")


def test_a_second_derivative_is_refused(variant):
    given, grad = made((1, 16, 16, 4, 4))
    leaves = [t.requires_grad_() for t in given]
    y, wanted = train_conv3x3(*leaves), grad.requires_grad_()
    (first,) = torch.autograd.grad(y, leaves[:1], wanted, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_errors():
    (x, weight, bias), _ = made((2, 16, 16, 4, 4))
    with pytest.raises(TypeError, match="one floating dtype"):
        train_conv3x3(x, weight.double(), bias)
    for wrong in ((x[0], weight, bias), (x[:, 1:], weight, bias), (x, weight, bias[1:])):
        with pytest.raises(ValueError, match="expected x"):
            train_conv3x3(*wrong)
    with pytest.raises(ValueError, match="backend must be one of"):
        train_conv3x3(x, weight, bias, backend="fast")
