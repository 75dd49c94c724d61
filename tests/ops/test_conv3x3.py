"""Convolution with epilogue, against its formula and torch's own convolution."""

import pytest
import torch
from torch.nn import functional as F

from cdrl_fast import BackendUnavailable
from cdrl_fast.ops.conv3x3 import conv3x3, tiling
from cdrl_fast.ops.fp32_precision import fp32_precision
from cdrl_fast.ops.sign_bits import unpack

USES = ("activate", "residual", "residual of stored", "plain", "masked", "masked residual")
# Batch, height, width, channels in and out, by what the kernel does on capability 90.
SHAPES = {
    "one sample, TMA": (1, 8, 8, 32, 64),
    "boxes of samples, TMA": (8, 4, 4, 32, 32),
    "odd batch, TMA": (15, 4, 4, 64, 32),
    "boxes side by side, TMA": (8, 6, 12, 32, 32),
    "odd size": (3, 7, 7, 32, 32),
    "odd sides": (2, 5, 14, 96, 64),
}


def integers(shape, generator, low=-2, high=3):
    """Return integers as float64; their sums of products are exact in every order and precision."""
    return torch.randint(low, high, shape, generator=generator).double()


def problem(use, shape, *, seed=0, rows=1):
    """Return x and weight of a convolution, in float64, and the keyword arguments of ``use``.

    Fractions in rows and residuals keep every sum away from zero, where rounding decides its sign.
    """
    batch, height, width, c_in, c_out = shape
    generator = torch.Generator().manual_seed(seed)
    x = integers((batch, height, width, c_in), generator)
    transposed = use.startswith("masked")
    weight = integers((9, c_out, c_in) if transposed else (9, c_in, c_out), generator, -1, 2)
    out_shape = (batch, height, width, c_out)
    signs_shape = (c_out // 32, batch * height * width)
    options = {}
    if not transposed:
        options["row"] = integers((rows, c_out), generator) + 0.25
    if use in ("activate", "residual", "residual of stored"):
        options |= {"activate": True, "signs_out": torch.zeros(signs_shape, dtype=torch.int32)}
    if use == "residual of stored":
        h = 5 * integers(out_shape, generator, -9, 10) + 2.5
        options |= {"residual": torch.where(h > 0, h, 0.2 * h), "residual_activated": True}
    elif "residual" in use:
        options["residual"] = integers(out_shape, generator, -9, 10) + 0.5
    if transposed:
        bits = torch.randint(-(2**31), 2**31, signs_shape, generator=generator).int()
        options |= {"signs": bits, "transposed": True}
    return x, weight, options


def cast(options, dtype, device="cpu"):
    """Return the keyword arguments in a dtype; rows are at least float32, signs int32."""
    other = {"row": torch.promote_types(dtype, torch.float32)}
    other |= dict.fromkeys(("signs", "signs_out"), torch.int32)
    return {
        name: value.to(device, other.get(name, dtype)) if torch.is_tensor(value) else value
        for name, value in options.items()
    }


def formula(x, weight, *, transposed=False, row=None, signs=None, residual=None,
            residual_activated=False, activate=False, signs_out=None):  # fmt: skip
    """Return the sum before activation, tap by tap, with each sign looked up by itself."""
    batch, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    y = 0.0
    for dy in range(3):
        for dx in range(3):
            shifted = padded[:, dy : dy + height, dx : dx + width]
            tap = 3 * dy + dx
            y = y + shifted @ (weight[8 - tap].T if transposed else weight[tap])
    if row is not None:
        y = y + row[:, None, None]
    if signs is not None:
        channel, pixel = torch.arange(y.shape[3]), torch.arange(batch * height * width)
        packed = signs.long()[channel[None, :] // 32, pixel[:, None]]
        slope = 0.2 + 0.8 * ((packed >> channel % 32) & 1).double()
        y = y * slope.view(y.shape)
    if residual is not None:
        y = y + (torch.where(residual > 0, residual, 5 * residual) if residual_activated
                 else residual)  # fmt: skip
    return y


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("rows", [1, 3])
def test_formula(use, rows):
    x, weight, options = problem(use, (3, 5, 6, 32, 64), rows=rows)
    y = formula(x, weight, **options)
    actual = conv3x3(x, weight, **options, backend="reference")
    expected = torch.where(y > 0, y, 0.2 * y) if options.get("activate") else y
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if "signs_out" in options:
        assert torch.equal(unpack(options["signs_out"]).view(y.shape), y > 0)
        assert torch.equal(options["signs_out"] < 0, (y > 0).flatten(0, 2)[:, 31::32].T)


def test_transposed_is_the_input_gradient():
    x, weight, _ = problem("plain", (2, 5, 6, 32, 64))
    x.requires_grad_(True)
    g = torch.randn(2, 5, 6, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(conv3x3(x, weight), x, g)
    actual = conv3x3(g, weight, transposed=True)
    torch.testing.assert_close(actual, expected)


def compare(use, shape, dtype, kernels, *, rows=1, input_precision="ieee"):
    """Compare a backend, in NaN-filled outputs, with the reference; check memory around them."""
    x, weight, options = problem(use, shape, rows=rows)
    x, weight = (t.to(kernels["device"], dtype) for t in (x, weight))
    expected_options = cast(options, dtype, kernels["device"])
    expected = conv3x3(x, weight, **expected_options, backend="reference")
    options = cast(options, dtype, kernels["device"])
    count, border = expected.numel(), 64
    frame = torch.full((count + 2 * border,), float("nan"), dtype=dtype, device=kernels["device"])
    out = frame[border : border + count].view(expected.shape)
    if "signs_out" in options:
        size = options["signs_out"].numel()
        guard = torch.full((size + 2,), 0x5A5A5A5A, dtype=torch.int32, device=kernels["device"])
        options["signs_out"] = guard[1:-1].view(options["signs_out"].shape)
    options |= {"input_precision": input_precision, "backend": kernels["backend"]}
    assert conv3x3(x, weight, **options, out=out) is out
    # The products are exact; only a residual, a factor of 0.2 and the result are rounded.
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=2 * ulp, atol=2 * ulp)
    assert frame[:border].isnan().all()
    assert frame[border + count :].isnan().all()
    if "signs_out" in options:
        assert torch.equal(options["signs_out"], expected_options["signs_out"])
        assert (options["signs_out"] < 0).any()
        assert (options["signs_out"] >= 0).any()
        assert guard[[0, -1]].tolist() == [0x5A5A5A5A] * 2


@pytest.fixture
def set_capability(monkeypatch):
    """Return a function that makes the interpreter run the kernels of a compute capability."""

    def change(capability, min_programs=tiling.MIN_PROGRAMS):
        tiling.tiling.cache_clear()
        monkeypatch.setattr(tiling, "capability_of", lambda device: capability)
        monkeypatch.setattr(tiling, "MIN_PROGRAMS", min_programs)

    yield change
    tiling.tiling.cache_clear()


# Tiles and epilogues are independent: two uses with every shape, and every use with two shapes.
USES_AND_SHAPES = [
    (use, shape)
    for use in USES
    for shape in SHAPES
    if use in ("activate", "masked residual") or shape in ("boxes of samples, TMA", "odd size")
]


@pytest.mark.parametrize(("use", "name"), USES_AND_SHAPES)
def test_interpreted(interpreter, use, name):
    shape = SHAPES[name]
    compare(use, shape, torch.float16, interpreter, rows=shape[0])


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("capability", [80, 90])
def test_interpreted_float32(interpreter, set_capability, use, capability):
    set_capability(capability)
    compare(use, SHAPES["boxes of samples, TMA"], torch.float32, interpreter, rows=8)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["one sample, TMA", "odd batch, TMA"])
def test_interpreted_without_tma(interpreter, set_capability, use, name):
    set_capability(80)
    compare(use, SHAPES[name], torch.float16, interpreter)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("capability", [80, 90])
def test_interpreted_large_tiles(interpreter, set_capability, use, capability):
    """Tiles of 128 pixels × 128 channels, with the epilogue in two halves."""
    set_capability(capability, min_programs=1)
    compare(use, (3, 8, 8, 32, 256), torch.float16, interpreter, rows=3)


def test_interpreted_without_signs_out_and_row(interpreter):
    x, weight, options = problem("residual", SHAPES["odd size"])
    del options["signs_out"], options["row"]
    options = cast(options, torch.float16)
    x, weight = x.half(), weight.half()
    actual = conv3x3(x, weight, **options, backend="triton")
    torch.testing.assert_close(actual, conv3x3(x, weight, **options, backend="reference"))


@pytest.mark.parametrize("backend", ["triton", "cudnn"])
def test_in_place_of_the_residual(triton_device, backend):
    x, weight, options = problem("masked residual", SHAPES["odd batch, TMA"])
    options = cast(options, torch.float16, triton_device)
    x, weight = (t.to(triton_device, torch.float16) for t in (x, weight))
    expected = conv3x3(x, weight, **options, backend="reference")
    actual = conv3x3(x, weight, **options, out=options["residual"], backend=backend)
    assert actual is options["residual"]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["x", "weight"])
def test_interpreted_off_16_bytes(interpreter, name):
    """TMA cannot load from such an address; plain loads can."""
    x, weight, _ = problem("plain", SHAPES["boxes of samples, TMA"])
    x, weight = x.half(), weight.half()
    expected = conv3x3(x, weight, backend="reference")
    tensors = {"x": x, "weight": weight}
    aligned = tensors[name]
    memory = torch.full((aligned.numel() + 1,), float("nan"), dtype=torch.float16)
    tensors[name] = memory[1:].view(aligned.shape).copy_(aligned)
    assert torch.equal(conv3x3(**tensors, backend="triton"), expected)


def test_shapes_that_use_tma():
    for name, (batch, height, width, c_in, c_out) in SHAPES.items():
        options = {"half": True, "exact": False, "aligned": True}
        tile = tiling.tiling((batch, height, width, c_in), c_out, capability=90, **options)
        assert tile.tma == name.endswith("TMA"), name
        old = tiling.tiling((batch, height, width, c_in), c_out, capability=86, **options)
        assert not old.tma


@pytest.mark.parametrize("size", [4, 7, 8, 14, 16, 28, 32])
@pytest.mark.parametrize("batch", [1, 63, 64, 1000])
@pytest.mark.parametrize("half", [True, False])
def test_tiles_cover_the_images(size, batch, half):
    shape = (batch, size, size, 128)
    tile = tiling.tiling(shape, 256, half=half, exact=not half, capability=90, aligned=True)
    samples, rows, columns = tile.box
    assert tile.programs(batch, size, size, 256) * tile.block_m * tile.block_n >= (
        batch * size * size * 256
    )
    assert 256 % tile.block_n == 128 % tile.block_k == 0
    if tile.tma:
        assert size % rows == size % columns == 0
        # At most an eighth of the work is for missing samples.
        assert -(-batch // samples) * samples <= 8 / 7 * batch
    assert tile.block_m in (64, 128)


def test_large_batches_take_large_tiles():
    options = {"half": True, "exact": False, "aligned": True, "capability": 90}
    large = tiling.tiling((64, 32, 32, 128), 128, **options)
    assert (large.box, large.block_n, large.block_k) == ((1, 4, 32), 128, 64)
    small = tiling.tiling((1, 8, 8, 256), 256, **options)
    assert (small.box, small.block_n) == ((1, 8, 8), 64)


def test_empty_batch():
    x, weight, options = problem("activate", (0, 8, 8, 32, 64))
    assert conv3x3(x, weight, **options).shape == (0, 8, 8, 64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, 4, 32).long()}, TypeError, "x must be of a floating dtype"),
        ({"x": torch.zeros(4, 4, 32)}, ValueError, r"x must be \(batch, height, width, channels\)"),
        ({"x": torch.zeros(2, 4, 4, 64)}, ValueError, "x has 64 channels"),
        ({"x": torch.zeros(2, 4, 32, 4).mT}, ValueError, "must be dense"),
        ({"transposed": True}, ValueError, "x has 32 channels, .*, transposed"),
        ({"weight": torch.zeros(9, 32, 64).half()}, TypeError, "weight must be torch.float32"),
        ({"weight": torch.zeros(9, 32, 48)}, ValueError, "multiples of 32"),
        ({"row": torch.zeros(3, 64)}, ValueError, r"row must be dense \(2, 64\)"),
        ({"row": torch.zeros(1, 64).half()}, TypeError, "row must be torch.float32"),
        ({"residual": torch.zeros(2, 4, 4, 32)}, ValueError, r"residual must .* \(2, 4, 4, 64\)"),
        ({"out": torch.zeros(2, 4, 4, 64).half()}, TypeError, "out must be torch.float32"),
        ({"signs": torch.zeros(2, 32)}, TypeError, "signs must be torch.int32"),
        ({"signs_out": torch.zeros(2, 31).int()}, ValueError, r"signs_out must .* \(2, 32\)"),
        ({"input_precision": "fast"}, ValueError, "input_precision must be one of"),
        ({"backend": "native"}, BackendUnavailable, "native"),
    ],
)
def test_bad_arguments(change, error, message):
    values = {"x": torch.zeros(2, 4, 4, 32), "weight": torch.zeros(9, 32, 64)} | change
    with pytest.raises(error, match=message):
        conv3x3(**values)


def test_out_apart_from_x():
    x, weight = torch.zeros(2, 4, 4, 32), torch.zeros(9, 32, 32)
    with pytest.raises(ValueError, match="must not share memory"):
        conv3x3(x, weight, out=x)
    memory = torch.zeros(x.numel() * 2)
    one, two = memory[: x.numel()].view(x.shape), memory[x.numel() :].view(x.shape)
    assert conv3x3(one, weight, out=two) is two
    assert conv3x3(two, weight, out=one) is one


def torch_formula(x, weight, options):
    """Return `formula` with cuDNN's convolution in the dtype, and its epilogue in float32."""
    filters = weight.unflatten(0, (3, 3)).permute(3, 2, 0, 1)
    filters = filters.contiguous(memory_format=torch.channels_last)
    convolve = F.conv_transpose2d if options.get("transposed") else F.conv2d
    with fp32_precision("ieee"):  # on GPUs the default is TF32
        y = convolve(x.permute(0, 3, 1, 2), filters, padding=1).permute(0, 2, 3, 1).float()
    if "row" in options:
        y = y + options["row"][:, None, None]
    if "signs" in options:
        y = torch.where(unpack(options["signs"]).view(y.shape), y, 0.2 * y)
    if "residual" in options:
        h = options["residual"].float()
        y = y + (torch.where(h > 0, h, 5 * h) if options.get("residual_activated") else h)
    return torch.where(y > 0, y, 0.2 * y) if options.get("activate") else y


ON_GPU = {
    "TMA": (64, 8, 8, 128, 128),
    "loads": (33, 7, 7, 64, 128),
    "small": (1, 4, 4, 32, 64),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("use", "shape"),
    [*((use, "TMA") for use in USES), ("activate", "loads"), ("masked residual", "loads"),
     ("residual of stored", "small")],
)  # fmt: skip
def test_on_a_gpu(use, shape, dtype):
    device = torch.device("cuda", 0)
    compare(use, ON_GPU[shape], dtype, {"backend": "triton", "device": device})
    x, weight, options = problem(use, ON_GPU[shape], rows=1)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(x.shape, generator=generator).to(device, dtype)
    weight = (0.05 * torch.randn(weight.shape, generator=generator)).to(device, dtype)
    options = cast(options, dtype, device)
    actual = conv3x3(x, weight, **options, backend="triton")
    tolerance = 8 * torch.finfo(dtype).eps
    expected = torch_formula(x, weight, options)
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.gpu
def test_tf32_on_a_gpu():
    """tf32 represents the integers of these products exactly."""
    kernels = {"backend": "triton", "device": torch.device("cuda", 0)}
    for use in ("activate", "masked residual"):
        compare(use, ON_GPU["TMA"], torch.float32, kernels, input_precision="tf32")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cudnn"])
@pytest.mark.parametrize("use", ["activate", "residual of stored", "masked residual"])
def test_cuda_graphs_capture_it(backend, use):
    """A replay uses the new values in the captured memory."""
    device = torch.device("cuda", 0)
    x, weight, options = problem(use, ON_GPU["TMA"])
    x, weight = x.to(device, torch.float16), weight.to(device, torch.float16)
    options = cast(options, torch.float16, device)
    out = conv3x3(x, weight, **options, backend=backend)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        conv3x3(x, weight, **options, out=out, backend=backend)
    x.copy_(-x)
    weight.copy_(weight.flip(0))
    expected = conv3x3(x, weight, **options, backend="reference")
    out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)
