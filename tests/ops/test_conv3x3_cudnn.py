"""`conv3x3` by torch's own convolution and one kernel for the epilogue, against the reference."""

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast.ops.conv3x3 import conv3x3
from tests.ops.test_conv3x3 import ON_GPU, SHAPES, USES, USES_AND_SHAPES, compare, problem


@pytest.fixture
def kernels(triton_device):
    return {"backend": "cudnn", "device": triton_device}


@pytest.mark.parametrize(("use", "name"), USES_AND_SHAPES)
def test_reference(kernels, use, name):
    shape = SHAPES[name]
    compare(use, shape, torch.float16, kernels, rows=shape[0])


@pytest.mark.parametrize("use", USES)
def test_float32(kernels, use):
    compare(use, (3, 8, 8, 32, 256), torch.float32, kernels)


def test_one_pixel_per_image(kernels):
    """torch cannot tell channels-last from contiguous images of one pixel."""
    compare("activate", (5, 1, 1, 32, 32), torch.float16, kernels, rows=5)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_library_call_in_channels_last_and_its_switches(kernels, monkeypatch, transposed):
    """Input and result are not copied; algorithms are deterministic, precision is the argument."""
    name, seen = "conv_transpose2d" if transposed else "conv2d", []
    library, switches = getattr(F, name), torch.backends.cudnn

    def spied(x, filters, **options):
        y = library(x, filters, **options)
        seen.append((x.data_ptr(), switches.conv.fp32_precision, switches.deterministic))
        for tensor in (x, filters, y):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        return y

    monkeypatch.setattr(F, name, spied)
    before = switches.conv.fp32_precision, switches.deterministic
    x, weight, _ = problem("plain", (2, 5, 6, 64, 64))
    x, weight = (t.to(kernels["device"], torch.float32) for t in (x, weight))
    for precision in ("ieee", "tf32"):
        options = {"transposed": transposed, "input_precision": precision, "backend": "cudnn"}
        conv3x3(x, weight, **options)
        assert seen.pop() == (x.data_ptr(), precision, True)
    assert (switches.conv.fp32_precision, switches.deterministic) == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", ON_GPU.values(), ids=ON_GPU)
@pytest.mark.parametrize("use", USES)
def test_on_a_gpu(use, shape, dtype):
    compare(use, shape, dtype, {"backend": "cudnn", "device": torch.device("cuda", 0)})
