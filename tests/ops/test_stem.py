"""The first convolution, against torch's and between backends."""

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast.ops.sign_bits import pack
from cdrl_fast.ops.stem import stem

# Batch, image channels, height, width, channels.
SIZES = [(1, 3, 8, 8, 32), (3, 1, 7, 7, 96), (5, 4, 5, 9, 64), (2, 2, 14, 28, 256)]


def arguments(size, dtype, device="cpu"):
    batch, image, height, width, channels = size
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = torch.randn(batch, image, height, width, generator=generator, dtype=wide)
    weight = torch.randn(9, image, channels, generator=generator).to(dtype)
    bias = torch.randn(channels, generator=generator, dtype=wide)
    bias[31] = 100.0  # bit 31 of sign bits is set
    return [t.to(device) for t in (y, weight, bias)]


def outputs(size, dtype, device="cpu", copies=1):
    """Return outputs filled with NaN, and with sign bits that differ from any result."""
    batch, _, height, width, channels = size
    batch *= copies
    shape = (channels // 32, batch * height * width)
    return {
        "out": torch.full(
            (batch, height, width, channels), float("nan"), dtype=dtype, device=device
        ),
        "signs": torch.full(shape, 12345, dtype=torch.int32, device=device),
    }


@pytest.mark.parametrize("size", SIZES)
def test_reference_is_torchs_convolution(size):
    y, weight, bias = arguments(size, torch.float64)
    actual = outputs(size, torch.float64)
    stem(y, weight, bias, **actual)
    filters = torch.stack(
        [torch.stack([weight[3 * dy + dx] for dx in range(3)]) for dy in range(3)]
    ).permute(3, 2, 0, 1)
    h = F.conv2d(y, filters, bias, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(actual["out"], F.leaky_relu(h, 0.2))
    assert torch.equal(actual["signs"], pack(h > 0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_agrees_with_the_reference(triton_device, size, dtype):
    tensors = arguments(size, dtype, triton_device)
    expected, actual = outputs(size, dtype), outputs(size, dtype, triton_device)
    # On the CPU: torch's convolutions on GPUs round float32 to TF32.
    stem(*arguments(size, dtype), **expected, backend="reference")
    assert stem(*tensors, **actual, backend="triton") is actual["out"]
    tolerance = {"rtol": 2e-3, "atol": 1e-5} if dtype == torch.float16 else {"rtol": 1e-6}
    torch.testing.assert_close(actual["out"].cpu(), expected["out"], **{"atol": 3e-5, **tolerance})
    assert torch.equal(actual["signs"].cpu(), expected["signs"])
    assert (actual["signs"][0] < 0).all()
    assert torch.equal(stem(*tensors, backend="triton"), actual["out"])


@pytest.mark.usefixtures("rows_alike")
def test_a_sample_has_the_same_bits_in_any_batch(triton_device):
    y, weight, bias = arguments((5, 3, 7, 7, 32), torch.float16, triton_device)
    batch = stem(y, weight, bias, backend="triton")
    for i in range(5):
        assert torch.equal(stem(y[i : i + 1], weight, bias, backend="triton")[0], batch[i])


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("size", SIZES[1:3])
def test_copies_have_the_bits_of_one(triton_device, size, dtype, backend):
    tensors = arguments(size, dtype, triton_device)
    one, three = (outputs(size, dtype, triton_device, copies) for copies in (1, 3))
    stem(*tensors, **one, backend=backend)
    stem(*tensors, copies=3, **three, backend=backend)
    pixels = one["signs"].shape[1]
    for i in range(3):
        assert torch.equal(three["out"][size[0] * i : size[0] * (i + 1)], one["out"])
        assert torch.equal(three["signs"][:, pixels * i : pixels * (i + 1)], one["signs"])
    assert torch.equal(stem(*tensors, copies=3, backend=backend), three["out"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_papers_shape_on_a_gpu(dtype):
    size = (33, 3, 32, 32, 128)
    tensors = arguments(size, dtype, "cuda")
    expected, actual = outputs(size, dtype), outputs(size, dtype, "cuda")
    stem(*arguments(size, dtype), **expected, backend="reference")
    stem(*tensors, **actual, backend="triton")
    error = (actual["out"].cpu().double() - expected["out"].double()).norm()
    assert error < torch.finfo(dtype).eps * expected["out"].double().norm()
    assert (actual["signs"].cpu() != expected["signs"]).float().mean() < 1e-3


def test_empty_batches():
    y, weight, bias = arguments((0, 3, 8, 8, 32), torch.float16)
    assert stem(y, weight, bias, copies=2).shape == (0, 8, 8, 32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": torch.zeros(2, 5, 8, 8)}, ValueError, "1 to 4 image channels"),
        ({"y": torch.zeros(2, 3, 8, 8).half()}, TypeError, "y must be torch.float32"),
        ({"y": torch.zeros(2, 8, 8, 3).permute(0, 3, 1, 2)}, ValueError, "y must be dense"),
        ({"weight": torch.zeros(9, 2, 32)}, ValueError, r"weight must be dense \(9, 3, 32\)"),
        ({"weight": torch.zeros(9, 3, 30)}, ValueError, "multiple of 32 channels"),
        ({"weight": torch.zeros(9, 3, 32).long()}, TypeError, "must be of a floating dtype"),
        ({"bias": torch.zeros(33)}, ValueError, r"bias must be dense \(32,\)"),
        ({"copies": 0}, ValueError, "copies must be an integer of at least 1, got 0"),
        ({"copies": 2, "out": torch.zeros(2, 8, 8, 32)}, ValueError, r"dense \(4, 8, 8, 32\)"),
        ({"out": torch.zeros(2, 8, 8, 64)}, ValueError, r"out must be dense \(2, 8, 8, 32\)"),
        ({"signs": torch.zeros(2, 128).int()}, ValueError, r"signs must be dense \(1, 128\)"),
    ],
)
def test_bad_arguments(change, error, message):
    values = {"y": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(9, 3, 32)}
    values |= {"bias": torch.zeros(32), **change}
    with pytest.raises(error, match=message):
        stem(values.pop("y"), values.pop("weight"), values.pop("bias"), **values)
