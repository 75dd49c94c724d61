"""torch's own convolution with one kernel after it, against what `conv3x3` means."""

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast.ops.conv3x3 import conv3x3
from tests.ops.test_conv3x3 import ON_GPU, SHAPES, USES, cast, compare, problem


@pytest.fixture
def room(triton_device):
    return {"backend": "cudnn", "device": triton_device}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_meaning(room, use, shape):
    compare(use, shape, torch.float16, room, rows=shape[0])


@pytest.mark.parametrize("use", USES)
def test_float32(room, use):
    compare(use, (3, 8, 8, 32, 256), torch.float32, room)


def test_one_pixel_an_image(room):
    """Where torch cannot tell channels-last from its opposite."""
    compare("activate", (5, 1, 1, 32, 32), torch.float16, room, rows=5)


def test_in_place_of_the_residual(room):
    x, weight, options = problem("masked residual", SHAPES["odd size"])
    options = cast(options, torch.float16, room["device"])
    x, weight = (t.to(room["device"], torch.float16) for t in (x, weight))
    expected = conv3x3(x, weight, **options, backend="reference")
    got = conv3x3(x, weight, **options, out=options["residual"], backend="cudnn")
    assert got is options["residual"]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_library_call_in_channels_last_and_its_switches(room, monkeypatch, transposed):
    """Neither input nor result is copied; algorithms are repeatable and precision is as asked."""
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
    x, weight = (t.to(room["device"], torch.float32) for t in (x, weight))
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


@pytest.mark.gpu
@pytest.mark.parametrize("use", ["residual of stored", "masked residual"])
def test_a_graph_holds_it(use):
    """Replayed on other inputs and weights in the same memory."""
    device = torch.device("cuda", 0)
    x, weight, options = problem(use, ON_GPU["TMA"])
    x, weight = x.to(device, torch.float16), weight.to(device, torch.float16)
    options = cast(options, torch.float16, device)
    out = conv3x3(x, weight, **options, backend="cudnn")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        conv3x3(x, weight, **options, out=out, backend="cudnn")
    x.copy_(-x)
    weight.copy_(weight.flip(0))
    expected = conv3x3(x, weight, **options, backend="reference")
    out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)
