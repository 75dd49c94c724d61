"""Pooling between stages and its transpose, against torch's and between backends."""

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast.ops.layout import leaky
from cdrl_fast.ops.pool import pool, spread
from cdrl_fast.ops.sign_bits import pack

SHAPES = [(1, 2, 2, 32), (3, 14, 6, 96), (5, 4, 8, 256)]


def activations(shape, dtype, device="cpu"):
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[..., 31].abs_()  # bit 31 of sign bits is set
    return leaky(h).to(dtype).to(device)


def outputs(a):
    """Return outputs filled with NaN, and with sign bits that differ from any result."""
    batch, height, width, channels = a.shape
    shape = (batch, height // 2, width // 2, channels)
    pixels = batch * height * width // 4
    return {
        "out": torch.full(shape, float("nan"), dtype=a.dtype, device=a.device),
        "mean": torch.full(shape, float("nan"), dtype=a.dtype, device=a.device),
        "signs": torch.full((channels // 32, pixels), 12345, dtype=torch.int32, device=a.device),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_mean_before_activation(shape):
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actual = outputs(h)
    pool(leaky(h), **actual)
    mean = F.avg_pool2d(h.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(actual["mean"], mean)
    torch.testing.assert_close(actual["out"], F.leaky_relu(mean, 0.2))
    assert torch.equal(actual["signs"], pack(mean > 0))


def test_spread_is_the_transpose_of_the_means():
    h = torch.randn(2, 4, 6, 32, generator=torch.Generator().manual_seed(0)).double()
    g = torch.randn(2, 2, 3, 32, generator=torch.Generator().manual_seed(1)).double()
    actual = outputs(h)
    pool(leaky(h), **actual)
    torch.testing.assert_close((actual["mean"] * g).sum(), (h * spread(g)).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_agrees_with_the_reference(triton_device, shape, dtype):
    a = activations(shape, dtype, triton_device)
    expected, actual = outputs(a), outputs(a)
    pool(a, **expected, backend="reference")
    assert pool(a, **actual, backend="triton") is actual["out"]
    # The sums are in another order, and are then rounded to the dtype.
    tolerance = {"rtol": 2e-3, "atol": 1e-6} if dtype == torch.float16 else {}
    for name in ("out", "mean"):
        torch.testing.assert_close(actual[name], expected[name], **tolerance)
    assert torch.equal(actual["signs"], expected["signs"])
    assert (actual["signs"][0] < 0).all()
    assert torch.equal(pool(a, backend="triton"), actual["out"])
    assert torch.equal(spread(a, backend="triton"), spread(a, backend="reference"))


def test_a_sample_has_the_same_bits_in_any_batch(triton_device):
    a = activations((5, 6, 2, 64), torch.float16, triton_device)
    batch = pool(a, backend="triton")
    for i in range(5):
        assert torch.equal(pool(a[i : i + 1], backend="triton")[0], batch[i])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_papers_shape_on_a_gpu(dtype):
    a = activations((33, 32, 32, 256), dtype, "cuda")
    expected, actual = outputs(a), outputs(a)
    pool(a, **expected, backend="reference")
    pool(a, **actual, backend="triton")
    torch.testing.assert_close(actual["out"], expected["out"])
    torch.testing.assert_close(actual["mean"], expected["mean"])
    different = actual["signs"] != expected["signs"]
    assert different.float().mean() < 1e-4
    assert torch.equal(spread(a, backend="triton"), spread(a, backend="reference"))


def test_empty_batches():
    assert pool(torch.zeros(0, 4, 4, 32)).shape == (0, 2, 2, 32)
    assert spread(torch.zeros(0, 4, 4, 32)).shape == (0, 8, 8, 32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": torch.zeros(2, 3, 4, 32)}, ValueError, "height and width must be even, got 3 and 4"),
        ({"a": torch.zeros(2, 4, 4, 30)}, ValueError, "multiple of 32 channels"),
        ({"a": torch.zeros(2, 32, 4, 4).permute(0, 2, 3, 1)}, ValueError, "a must be dense"),
        ({"a": torch.zeros(2, 4, 4, 32).long()}, TypeError, "a must be of a floating dtype"),
        ({"out": torch.zeros(2, 4, 4, 32)}, ValueError, r"out must be dense \(2, 2, 2, 32\)"),
        ({"mean": torch.zeros(2, 2, 2, 32).half()}, TypeError, "mean must be torch.float32"),
        ({"signs": torch.zeros(1, 8)}, TypeError, "signs must be torch.int32"),
        ({"signs": torch.zeros(8, 1).int()}, ValueError, r"signs must be dense \(1, 8\)"),
    ],
)
def test_bad_arguments(change, error, message):
    values = {"a": torch.zeros(2, 4, 4, 32), **change}
    with pytest.raises(error, match=message):
        pool(**values)
