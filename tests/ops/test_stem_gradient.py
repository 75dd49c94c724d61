"""The gradient by the images, and the fused Langevin update, against the separate operations."""

import pytest
import torch

from cdrl_fast.ops import langevin_step, rng_state
from cdrl_fast.ops.langevin_step import NEVER
from cdrl_fast.ops.stem import stem
from cdrl_fast.ops.stem_gradient import stem_gradient, stem_langevin_

# Batch, image channels, height, width, channels.
SIZES = [(1, 3, 8, 8, 32), (3, 1, 7, 7, 96), (2, 4, 5, 14, 32), (3, 2, 12, 20, 64)]
STEP = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rescale": 1.4}
FREE = {**STEP, "pull": 0.0}
RNG = (2**64 - 3, 2**32 - 2, 2**40)


def arguments(size, dtype, device="cpu"):
    batch, image, height, width, channels = size
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch, image, height, width)
    y, anchor = (torch.randn(shape, generator=generator, dtype=wide) for _ in range(2))
    g = torch.randn(batch, height, width, channels, generator=generator).to(dtype)
    weight = (0.2 * torch.randn(9, image, channels, generator=generator)).to(dtype)
    return [t.to(device) for t in (y, g, weight, anchor)]


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_reference_is_the_transpose_of_the_stem(size):
    y, g, weight, _ = arguments(size, torch.float64)
    y.requires_grad_(True)
    bias = torch.full((size[4],), 1e6, dtype=torch.float64)  # all signs are positive
    (expected,) = torch.autograd.grad((affine_stem(y, weight, bias) * g).sum(), y)
    torch.testing.assert_close(stem_gradient(g, weight, scale=8.0), expected / 8.0)


def affine_stem(y, weight, bias):
    """Return `stem` of y, differentiable: it is affine where all signs are positive."""
    basis = torch.eye(y[0].numel(), dtype=y.dtype).reshape(-1, *y.shape[1:])
    columns = stem(basis, weight, bias) - bias
    return torch.einsum("bk,khwc->bhwc", y.flatten(1), columns)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_agrees_with_the_reference(triton_device, size, dtype):
    y, g, weight, _ = arguments(size, dtype, triton_device)
    # On the CPU: torch's convolutions on GPUs round float32 to TF32.
    expected = stem_gradient(g.cpu(), weight.cpu(), scale=0.5, backend="reference")
    out = torch.full_like(y, float("nan"))
    assert stem_gradient(g, weight, scale=0.5, out=out, backend="triton") is out
    close(out, expected, 4e-5)


def separate(y, g, weight, anchor, **values):
    """Return the result of both operations, one after the other, in Triton."""
    gradient = stem_gradient(g, weight, backend="triton")
    return langevin_step(y, gradient, anchor, backend="triton", **values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_one_pass_agrees_with_two_operations(triton_device, size, dtype):
    y, g, weight, anchor = arguments(size, dtype, triton_device)
    expected = separate(y, g, weight, anchor, rng=RNG, **STEP)
    actual = y.clone()
    tensors = (g, weight, anchor)
    assert stem_langevin_(actual, *tensors, rng=RNG, backend="triton", **STEP) is actual
    close(actual, expected)
    on_cpu = [t.cpu() for t in (y, *tensors)]
    close(stem_langevin_(*on_cpu, rng=RNG, backend="reference", **STEP), expected, 2e-5)
    # The noise alone has the same bits.
    noise = {"drift": 0.0, "pull": 0.0, "noise_std": 1.0, "rng": RNG}
    zero = torch.zeros_like(y)
    actual = stem_langevin_(zero.clone(), g, weight, backend="triton", **noise)
    assert torch.equal(actual, langevin_step(zero, zero, None, backend="triton", **noise))


def arguments_with_terms(size, dtype, device, terms):
    """Return arguments with a g of several terms of different magnitudes."""
    batch, *rest = size
    y, _, weight, anchor = arguments(size, dtype, device)
    g = arguments((terms * batch, *rest), dtype, device)[1]
    scale = torch.tensor([3.0, -2.0, 0.5][:terms], device=device).repeat_interleave(batch)
    return y, (g * scale.view(-1, 1, 1, 1)).to(dtype), weight, anchor


@pytest.mark.parametrize("terms", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_reference_sums_terms(size, terms):
    _, g, weight, _ = arguments_with_terms(size, torch.float64, "cpu", terms)
    expected = sum(stem_gradient(part, weight, scale=8.0) for part in g.chunk(terms))
    torch.testing.assert_close(stem_gradient(g, weight, terms=terms, scale=8.0), expected)


@pytest.mark.parametrize(
    ("terms", "size"), [(2, SIZES[0]), (3, SIZES[0]), (2, SIZES[1]), (2, SIZES[2]), (2, SIZES[3])]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_sums_terms(triton_device, size, dtype, terms):
    y, g, weight, anchor = arguments_with_terms(size, dtype, triton_device, terms)
    expected = stem_gradient(g.cpu(), weight.cpu(), terms=terms, backend="reference")
    out = torch.full_like(y, float("nan"))
    assert stem_gradient(g, weight, terms=terms, out=out, backend="triton") is out
    close(out, expected, 1e-4)
    values = {"terms": terms, "rng": RNG, **STEP}
    on_cpu = [t.cpu() for t in (y, g, weight, anchor)]
    expected = stem_langevin_(*on_cpu, backend="reference", **values)
    close(stem_langevin_(y, g, weight, anchor, backend="triton", **values), expected, 1e-4)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_coefficients_in_every_form(triton_device, backend):
    size = (3, 2, 6, 8, 32)
    y, g, weight, anchor = arguments(size, torch.float32, triton_device)

    def run(values, rng=RNG):
        return stem_langevin_(y.clone(), g, weight, anchor, rng=rng, backend=backend, **values)

    expected = run(STEP)
    single = {n: torch.tensor([v], device=triton_device) for n, v in STEP.items()}
    close(run(single), expected, 1e-6)
    close(run({**STEP, "drift": torch.tensor(0.7), "pull": single["pull"]}), expected, 1e-6)
    scale = torch.tensor([1.0, -2.0, 0.5], device=triton_device)
    per_sample = run({n: v * scale for n, v in STEP.items()})
    mixed = run({**single, "rescale": 1.4 * scale})
    for i, factor in enumerate(scale.tolist()):
        rng = (RNG[0], RNG[1], RNG[2] + i)
        values = {n: v * factor for n, v in STEP.items()}
        one = stem_langevin_(y[i : i + 1].clone(), g[i : i + 1], weight, anchor[i : i + 1],
                             rng=rng, backend=backend, **values)  # fmt: skip
        close(per_sample[i], one[0], 5e-5)
        close(mixed[i], factor * expected[i], 5e-5)


@pytest.mark.parametrize("size", [(3, 3, 8, 12, 32), (2, 1, 7, 9, 32)])
def test_an_rng_state_is_read_and_advanced(triton_device, size):
    y, g, weight, anchor = arguments(size, torch.float16, triton_device)
    rng = rng_state(seed=RNG[0], draw=11, first_sample=RNG[2], device=triton_device)
    options = {"backend": "triton", **STEP}
    actual, expected = y.clone(), y.clone()
    for draw in (11, 12):
        stem_langevin_(actual, g, weight, anchor, rng=rng, **options)
        stem_langevin_(expected, g, weight, anchor, rng=(RNG[0], draw, RNG[2]), **options)
        assert torch.equal(actual, expected)
    assert rng.tolist() == [-3, 13, RNG[2], 0]


@pytest.mark.usefixtures("rows_alike")
def test_a_sample_has_the_same_bits_in_any_batch(triton_device):
    y, g, weight, anchor = arguments((4, 3, 9, 12, 32), torch.float16, triton_device)
    batch = stem_langevin_(y.clone(), g, weight, anchor, rng=RNG, backend="triton", **STEP)
    pairs = stem_langevin_(y[:2].clone(), g, weight, terms=2, rng=RNG, backend="triton", **FREE)
    for i in range(4):
        one = [t[i : i + 1].clone() for t in (y, g)]
        rng = (RNG[0], RNG[1], RNG[2] + i)
        stem_langevin_(*one, weight, anchor[i : i + 1], rng=rng, backend="triton", **STEP)
        assert torch.equal(one[0][0], batch[i])
        if i < 2:
            pair = y[i : i + 1].clone()
            stem_langevin_(
                pair, g[i::2].clone(), weight, terms=2, rng=rng, backend="triton", **FREE
            )
            assert torch.equal(pair[0], pairs[i])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_first_bad_and_the_spread_of_a_nan(triton_device, backend):
    y, g, weight, anchor = arguments((3, 3, 9, 12, 32), torch.float16, triton_device)
    first_bad = torch.full((), NEVER, device=triton_device)
    options = {"first_bad": first_bad, "backend": backend, **STEP}
    stem_langevin_(y.clone(), g, weight, anchor, rng=(1, 5, 0), **options)
    assert int(first_bad) == NEVER
    g[2, 8, 7, 5] = float("nan")  # beside the border of a tile
    actual = y.clone()
    for draw in (2**32 - 2, 2**32 - 1):
        actual.copy_(y)
        stem_langevin_(actual, g, weight, anchor, rng=(1, draw, 0), **options)
    assert divmod(int(first_bad), 2**31) == (2**32 - 2, 2)
    expected = torch.zeros(actual.shape, dtype=torch.bool)
    expected[2, :, 7:9, 6:9] = True
    assert torch.equal(actual.isnan().cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(65, 3, 32, 32, 128), (33, 1, 28, 28, 256)])
def test_the_papers_shape_on_a_gpu(dtype, size):
    y, g, weight, anchor = arguments(size, dtype, "cuda")
    expected = stem_gradient(g.cpu(), weight.cpu())
    close(stem_gradient(g, weight, backend="triton"), expected, 2e-4)
    expected = separate(y, g, weight, anchor, rng=RNG, **STEP)
    close(stem_langevin_(y, g, weight, anchor, rng=RNG, backend="triton", **STEP), expected, 2e-4)


@pytest.mark.gpu
def test_replays_of_a_graph_use_changed_coefficients_and_new_noise():
    y, g, weight, anchor = arguments((5, 3, 32, 32, 128), torch.float16, "cuda")
    drift, rng = torch.tensor([0.7], device="cuda"), rng_state(seed=1, draw=2, device="cuda")
    values = {**STEP, "drift": drift, "rng": rng, "backend": "triton"}
    start, expected = y.clone(), y.clone()
    stem_langevin_(y, g, weight, anchor, **values)  # builds and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stem_langevin_(y, g, weight, anchor, **values)
    y.copy_(start)
    rng.copy_(rng_state(seed=1, draw=2))
    for draw, value in ((2, 0.7), (3, 0.1)):
        drift.fill_(value)
        graph.replay()
        step = {**STEP, "drift": torch.tensor([value], device="cuda")}
        stem_langevin_(expected, g, weight, anchor, rng=(1, draw, 0), backend="triton", **step)
    assert torch.equal(y, expected)


def test_empty_batches():
    y, g, weight, anchor = arguments((0, 3, 8, 8, 32), torch.float16)
    assert stem_gradient(g, weight).shape == (0, 3, 8, 8)
    assert stem_langevin_(y, g, weight, anchor, rng=RNG, **STEP) is y


def test_outputs_share_no_memory_with_inputs():
    y, g, weight, _ = arguments((2, 3, 8, 8, 32), torch.float32)
    memory = torch.zeros(y.numel() + 1)
    y, shifted = memory[:-1].view(y.shape), memory[1:].view(y.shape)
    for anchor in (y, shifted):
        with pytest.raises(ValueError, match="y must not share memory with anchor"):
            stem_langevin_(y, g, weight, anchor, rng=RNG, **STEP)
    with pytest.raises(ValueError, match="out must not share memory with g"):
        stem_gradient(g, weight, out=g.view(-1)[: y.numel()].view(y.shape))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"g": torch.zeros(2, 8, 8, 30)}, ValueError, "g must be dense"),
        ({"weight": torch.zeros(9, 5, 32)}, ValueError, "1 to 4 image channels"),
        ({"weight": torch.zeros(9, 3, 64)}, ValueError, r"weight must be dense \(9, 3, 32\)"),
        ({"weight": torch.zeros(9, 3, 32).half()}, TypeError, "weight must be torch.float32"),
        ({"terms": 0}, ValueError, "terms must be an integer that divides the 2 samples of g"),
        ({"terms": 3}, ValueError, "terms must be an integer that divides the 2 samples of g"),
        ({"terms": 2}, ValueError, r"y must be dense \(1, 3, 8, 8\)"),
        ({"y": torch.zeros(2, 3, 8, 9)}, ValueError, r"y must be dense \(2, 3, 8, 8\)"),
        ({"y": torch.zeros(2, 3, 8, 8).half()}, TypeError, "y must be torch.float32"),
        ({"anchor": torch.zeros(2, 3, 8, 8).double()}, TypeError, "anchor must be torch.float32"),
        ({"anchor": None}, ValueError, "without an anchor, pull must be 0.0"),
        ({"drift": torch.zeros(3)}, ValueError, r"drift must be a number or have shape \(2,\)"),
        ({"rng": (1, -2, 0)}, ValueError, "draw must be in"),
        ({"rng": torch.zeros(3).long()}, ValueError, "rng must have 4 elements"),
        ({"first_bad": torch.zeros(1)}, TypeError, "first_bad must be int64"),
    ],
)
def test_bad_arguments(change, error, message):
    image = torch.zeros(2, 3, 8, 8)
    values = {"y": image, "g": torch.zeros(2, 8, 8, 32), "weight": torch.zeros(9, 3, 32)}
    values |= {"anchor": image.clone(), "rng": RNG, **STEP, **change}
    with pytest.raises(error, match=message):
        stem_langevin_(**values)
