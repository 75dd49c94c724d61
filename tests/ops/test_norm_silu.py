"""Fused group norm, scale, shift and SiLU, against their formula and between backends."""

import pytest
import torch
from torch import nn

from cdrl_fast.networks.kernels import GroupNormSilu
from cdrl_fast.ops.norm_silu import norm_silu

# Groups of 2, 1, 3, 9, 5 and 17 channels, one or several per program; maps larger than a tile.
SHAPES = [
    (3, 16, 20, 64), (2, 1, 1, 8), (2, 5, 7, 96), (1, 33, 29, 18), (1, 3, 2, 160), (1, 4, 4, 34),
]  # fmt: skip
# The interpreter also computes lanes without data, which are not stored.
unwarned = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}


def inputs(shape, dtype, device="cpu", *, row_per_sample=True, mean=2.0):
    """Return x, weight, bias and optional arguments; the unaligned row is part of a longer one."""
    generator, channels = torch.Generator().manual_seed(0), shape[3]

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = (3.0 * draw(*shape) + mean).to(dtype).to(device)
    weight, bias, offset = draw(3, channels).to(wide).to(device)
    rows = draw(shape[0] if row_per_sample else 1, 2 * channels + 5).to(wide).to(device)
    return x, weight, bias, {"offset": offset, "row": rows[:, 3:-2]}


def exactly(x, weight, bias, offset=None, row=None, activate=True):
    """Return the formula in float64 for the rounded arguments."""
    channels, planes = x.shape[3], x.double().permute(0, 3, 1, 2)
    if offset is not None:
        planes = planes + offset.double()[:, None, None]
    norm = GroupNormSilu(channels)
    groups = planes.reshape(x.shape[0], norm.num_groups, -1)
    groups = groups - groups.mean(dim=2, keepdim=True)
    groups = groups / (groups.square().mean(dim=2, keepdim=True) + norm.eps).sqrt()
    h = groups.reshape(planes.shape).permute(0, 2, 3, 1) * weight.double() + bias.double()
    if row is not None:
        scale, shift = row.double()[:, None, None].chunk(2, dim=3)
        h = h * (1 + scale) + shift
    return nn.functional.silu(h) if activate else h


def close(actual, expected, tolerance):
    assert actual.isfinite().all()
    assert ((actual - expected).abs() <= tolerance * expected.abs().max()).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row_per_sample", [True, False], ids=["rows", "one row"])
def test_the_reference_is_the_formula(shape, row_per_sample):
    x, weight, bias, rest = inputs(shape, torch.float64, row_per_sample=row_per_sample)
    for options in ({}, rest, {"row": rest["row"], "activate": False}):
        actual = norm_silu(x, weight, bias, **options)
        close(actual, exactly(x, weight, bias, **options), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_is_the_formula(triton_device, shape, dtype):
    x, weight, bias, rest = inputs(shape, dtype, triton_device, row_per_sample=shape[3] != 64)
    expected = exactly(x, weight, bias, **rest)
    padded = torch.full((shape[0] + 2, *shape[1:]), float("nan"), dtype=dtype, device=x.device)
    out = padded[1:-1]
    assert norm_silu(x, weight, bias, **rest, out=out, backend="triton") is out
    close(out, expected, TOLERANCE[dtype])
    assert padded[[0, -1]].isnan().all()
    # torch's sums of squares cancel.
    reference = norm_silu(x, weight, bias, **rest, backend="reference")
    close(reference, expected, max(TOLERANCE[dtype], 1e-4))
    bare = norm_silu(x, weight, bias, activate=False, backend="triton")
    close(bare, exactly(x, weight, bias, activate=False), TOLERANCE[dtype])
    assert norm_silu(x, weight, bias, **rest, out=x, backend="triton") is x
    assert torch.equal(x, out)


@unwarned
def test_large_means_do_not_cancel(triton_device):
    x, weight, bias, _ = inputs((1, 12, 9, 32), torch.float32, triton_device, mean=3000.0)
    close(norm_silu(x, weight, bias, backend="triton"), exactly(x, weight, bias), 1e-4)
    flat = torch.full_like(x, 3000.0)
    actual = norm_silu(flat, weight, bias, activate=False, backend="triton")
    torch.testing.assert_close(actual, bias.expand_as(actual), rtol=0, atol=1e-6)


@unwarned
def test_silu_far_from_zero(triton_device):
    x, weight, bias, _ = inputs((1, 3, 3, 32), torch.float32, triton_device)
    weight, bias = 0 * weight, torch.linspace(-300, 300, 32, device=triton_device)
    actual = norm_silu(x, weight, bias, backend="triton")
    torch.testing.assert_close(actual, nn.functional.silu(bias).expand_as(actual))


def test_a_sample_has_the_same_bits_in_any_batch(triton_device):
    x, weight, bias, rest = inputs((5, 9, 3, 64), torch.float16, triton_device)
    batch = norm_silu(x, weight, bias, **rest, backend="triton")
    for i in range(5):
        rest_i = {"offset": rest["offset"], "row": rest["row"][i : i + 1]}
        one = norm_silu(x[i : i + 1], weight, bias, **rest_i, backend="triton")
        assert torch.equal(one[0], batch[i])


def test_a_nan_stays_in_its_sample(triton_device):
    x, weight, bias, rest = inputs((3, 4, 4, 32), torch.float16, triton_device)
    expected = norm_silu(x, weight, bias, **rest, backend="triton")
    x[1, 2, 2] = float("nan")
    actual = norm_silu(x, weight, bias, **rest, backend="triton")
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(33, 32, 32, 64), (9, 64, 64, 192), (300, 8, 8, 256)])
def test_an_initializers_shapes_on_a_gpu(dtype, shape):
    x, weight, bias, rest = inputs(shape, dtype, "cuda")
    actual = norm_silu(x, weight, bias, **rest, backend="triton")
    close(actual, exactly(x, weight, bias, **rest), TOLERANCE[dtype])


def test_out_shares_no_memory_with_the_arguments():
    memory = torch.zeros(2 * 4 * 4 * 8 + 1)
    x, shifted = memory[:-1].view(2, 4, 4, 8), memory[1:].view(2, 4, 4, 8)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        norm_silu(x, torch.zeros(8), torch.zeros(8), out=shifted)
    with pytest.raises(ValueError, match="out must not share memory with weight"):
        norm_silu(x, memory[3:11], torch.zeros(8), out=x)


def test_empty_batches(triton_device):
    x, weight, bias, rest = inputs(
        (0, 4, 4, 32), torch.float32, triton_device, row_per_sample=False
    )
    assert norm_silu(x, weight, bias, **rest, backend="triton").shape == (0, 4, 4, 32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 8, 8, 4).permute(0, 3, 1, 2)}, ValueError, "x must be dense"),
        ({"x": torch.zeros(2, 4, 8)}, ValueError, "x must be dense"),
        ({"x": torch.zeros(2, 4, 4, 8).long()}, TypeError, "x must be of a floating dtype"),
        ({"weight": torch.zeros(4)}, ValueError, r"weight must be dense \(8,\)"),
        ({"bias": torch.zeros(8).half()}, TypeError, "bias must be torch.float32"),
        ({"offset": torch.zeros(16)[::2]}, ValueError, r"offset must be dense \(8,\)"),
        ({"out": torch.zeros(2, 4, 4, 16)}, ValueError, r"out must be dense \(2, 4, 4, 8\)"),
        ({"row": torch.zeros(3, 16)}, ValueError, r"row must be \(1 or 2, 16\)"),
        ({"row": torch.zeros(16, 2).mT}, ValueError, "with each row dense"),
        ({"row": torch.zeros(1, 16).double()}, TypeError, "row must be torch.float32"),
    ],
)
def test_bad_arguments(change, error, message):
    values = {"x": torch.zeros(2, 4, 4, 8), "weight": torch.zeros(8), "bias": torch.zeros(8)}
    with pytest.raises(error, match=message):
        norm_silu(**{**values, **change})
