"""Energies and gradient of the head, against autograd and between backends."""

import pytest
import torch

from cdrl_fast.ops.head import head
from cdrl_fast.ops.layout import leaky

SHAPES = [(1, 1, 1, 32), (3, 7, 7, 96), (5, 4, 4, 512), (2, 12, 16, 64)]


def arguments(shape, dtype, device="cpu", row_per_sample=True):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = torch.randn(shape[0] if row_per_sample else 1, shape[3], generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return leaky(h).to(dtype).to(device), rows.to(wide).to(device)


def poisoned(a):
    return torch.full_like(a, float("nan"))


@pytest.mark.parametrize("row_per_sample", [False, True])
def test_reference_is_its_formula(row_per_sample):
    a, rows = arguments((3, 5, 2, 64), torch.float64, row_per_sample=row_per_sample)
    h = torch.where(a > 0, a, 5 * a).requires_grad_(True)
    energy = (h.relu().sum(dim=(1, 2)) * rows).sum(dim=1)
    (slope,) = torch.autograd.grad(energy.sum(), h)
    gradient = poisoned(a)
    torch.testing.assert_close(head(a, rows, scale=8.0, gradient=gradient), energy.detach())
    torch.testing.assert_close(gradient, 8.0 * slope)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("row_per_sample", [False, True])
def test_triton_agrees_with_the_reference(triton_device, shape, dtype, row_per_sample):
    a, rows = arguments(shape, dtype, triton_device, row_per_sample)
    expected, actual = poisoned(a), poisoned(a)
    out = torch.full((shape[0],), float("nan"), device=triton_device)
    head(a, rows, scale=64.0, gradient=expected, backend="reference")
    assert head(a, rows, scale=64.0, gradient=actual, out=out, backend="triton") is out
    assert torch.equal(actual, expected)
    # Float32 sums against float64's, relative to the sum of magnitudes.
    parts = a.double().relu() * rows.double()[:, None, None, :]
    error = (out - parts.sum(dim=(1, 2, 3))).abs() / parts.abs().sum(dim=(1, 2, 3))
    assert error.max() < 1e-6
    assert torch.equal(head(a, rows, backend="triton"), out)


def test_a_sample_has_the_same_bits_in_any_batch(triton_device):
    a, rows = arguments((5, 7, 3, 96), torch.float16, triton_device)
    batch = head(a, rows, backend="triton")
    for i in range(5):
        one = head(a[i : i + 1], rows[i : i + 1], backend="triton")
        assert torch.equal(one[0], batch[i])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(257, 4, 4, 256), (3, 32, 32, 128)])
def test_the_papers_shape_on_a_gpu(dtype, shape):
    a, rows = arguments(shape, dtype, "cuda")
    expected, actual = poisoned(a), poisoned(a)
    energy = head(a, rows, scale=64.0, gradient=expected, backend="reference")
    out = head(a, rows, scale=64.0, gradient=actual, backend="triton")
    assert torch.equal(actual, expected)
    torch.testing.assert_close(out, energy, rtol=1e-5, atol=1e-3)


def test_empty_batches():
    assert head(torch.zeros(0, 4, 4, 32), torch.zeros(1, 32)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": torch.zeros(2, 4, 32)}, ValueError, "a must be dense"),
        ({"rows": torch.zeros(3, 32)}, ValueError, r"rows must be dense \(2, 32\)"),
        ({"rows": torch.zeros(1, 32).half()}, TypeError, "rows must be torch.float32"),
        ({"out": torch.zeros(2, 1)}, ValueError, r"out must be dense \(2,\)"),
        ({"gradient": torch.zeros(2, 4, 4, 32).half()}, TypeError, "gradient must be torch.float3"),
    ],
)
def test_bad_arguments(change, error, message):
    values = {"a": torch.zeros(2, 4, 4, 32), "rows": torch.zeros(1, 32), **change}
    with pytest.raises(error, match=message):
        head(values.pop("a"), values.pop("rows"), **values)
