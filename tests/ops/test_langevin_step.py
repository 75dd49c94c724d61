"""The Langevin update against its formula, with numbers and tensors as coefficients."""

from dataclasses import replace

import pytest
import torch

from cdrl_fast.ops import Key, Phase, langevin_step, langevin_step_, normal, rng_state
from cdrl_fast.ops.langevin_step import NEVER, bound_step

RNG = (5, 77, 1000)


def tensors(shape=(4, 3, 5), dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device) for _ in range(3)]


def close(actual, expected):
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_formula(dtype, per_sample):
    x, grad, anchor = tensors(dtype=dtype)
    values = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rescale": 1.4}
    if per_sample:
        scale = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=dtype)
        values = {name: value * scale for name, value in values.items()}
    z = normal(x.shape, seed=5, draw=77, first_sample=1000, dtype=dtype)
    c = {k: v.reshape(-1, 1, 1) if per_sample else v for k, v in values.items()}
    expected = x + c["drift"] * grad - c["pull"] * (x - anchor) + c["noise_std"] * z
    actual = langevin_step(x, grad, anchor, rng=RNG, **values)
    torch.testing.assert_close(actual, c["rescale"] * expected)
    assert actual.dtype == dtype


def test_inputs_are_not_changed_and_out_is_written():
    x, grad, anchor = tensors()
    copies = [t.clone() for t in (x, grad, anchor)]
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "rng": RNG}
    y = langevin_step(x, grad, anchor, **options)
    assert all(torch.equal(a, b) for a, b in zip((x, grad, anchor), copies, strict=True))
    out = torch.full_like(x, float("nan"))
    assert langevin_step(x, grad, anchor, out=out, **options) is out
    assert torch.equal(out, y)
    assert langevin_step_(x, grad, anchor, **options) is x
    assert torch.equal(x, y)


def test_without_recovery_term_and_half_precision_gradient():
    x, grad, _ = tensors()
    y = langevin_step(x, grad.half(), None, drift=0.5, pull=0.0, noise_std=0.0, rng=RNG)
    torch.testing.assert_close(y, x + 0.5 * grad.half().float())


def test_views_and_empty_batches():
    x, grad, anchor = (t[::2, :, 1:] for t in tensors((8, 3, 6)))
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "rng": RNG}
    dense = langevin_step(x.contiguous(), grad.contiguous(), anchor.contiguous(), **options)
    assert torch.equal(langevin_step(x, grad, anchor, **options), dense)
    assert langevin_step(x[:0], grad[:0], anchor[:0], **options).shape == (0, 3, 5)


def test_first_bad_is_the_earliest_draw_and_sample():
    x, grad, anchor = tensors()
    first_bad = torch.full((), NEVER)
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "first_bad": first_bad}
    options["backend"] = "reference"
    langevin_step(x, grad, anchor, rng=(5, 76, 0), **options)
    assert int(first_bad) == NEVER
    grad[2, 1, 1], grad[3, 0, 0] = float("nan"), float("inf")
    for draw in (77, 78):
        langevin_step(x, grad, anchor, rng=(5, draw, 0), **options)
    assert divmod(int(first_bad), 2**31) == (77, 2)


@pytest.mark.parametrize(
    "shape", [(3, 1), (300, 2), (7, 31), (5, 3, 11), (4, 3, 32, 32), (2, 1028), (2, 1025)]
)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_agree_with_the_reference(kernels, shape, per_sample, grad_dtype):
    x, grad, anchor = tensors(shape, device=kernels["device"])
    grad = grad.to(grad_dtype)
    values = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rescale": 1.4}
    if per_sample:
        scale = torch.linspace(-1, 2, shape[0], device=kernels["device"])
        values = {name: value * scale for name, value in values.items()}
    fast = langevin_step(x, grad, anchor, rng=RNG, backend=kernels["backend"], **values)
    close(fast, langevin_step(x, grad, anchor, rng=RNG, backend="reference", **values))


def test_without_recovery_term(kernels):
    x, grad, _ = tensors((9, 3, 32), device=kernels["device"])
    values = {"drift": 0.7, "pull": 0.0, "noise_std": 0.3, "rng": RNG}
    fast = langevin_step(x, grad, None, backend=kernels["backend"], **values)
    close(fast, langevin_step(x, grad, None, backend="reference", **values))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_every_half(kernels, dtype):
    """Check all 65,536 numbers, among them subnormal ones, infinities and NaN."""
    grad = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None].to(kernels["device"])
    zero = torch.zeros(grad.shape, device=kernels["device"])
    values = {"drift": 1.0, "pull": 0.0, "noise_std": 0.0, "rng": RNG}
    actual = langevin_step(zero, grad, None, backend=kernels["backend"], **values)
    assert grad.isnan().any()
    assert grad.isinf().any()
    # Triton's interpreter converts subnormal bfloat16 numbers wrongly.
    atol = (
        torch.finfo(dtype).tiny if kernels["backend"] == "triton" and dtype != torch.float16 else 0
    )
    torch.testing.assert_close(actual, grad.float(), rtol=0, atol=atol, equal_nan=True)


def test_a_sample_has_the_same_bits_in_any_batch(kernels):
    x, grad, anchor = tensors((9, 3, 13), device=kernels["device"])
    options = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "backend": kernels["backend"]}
    full = langevin_step(x, grad, anchor, rng=(1, 2, 0), **options)
    for i in range(9):
        one = [t[i : i + 1] for t in (x, grad, anchor)]
        assert torch.equal(langevin_step(*one, rng=(1, 2, i), **options)[0], full[i])


def test_odd_views_and_outputs(kernels):
    """Use misaligned, sliced and overlapping memory; nothing outside the output is written."""
    device = kernels["device"]
    memory = torch.randn(4 * 67 + 9, generator=torch.Generator().manual_seed(1)).to(device)
    x = memory[1 : 1 + 4 * 67].view(4, 67)
    _, grad, anchor = tensors((4, 67), device=device)
    options = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rng": RNG}
    expected = langevin_step(x.clone(), grad, anchor, backend="reference", **options)
    options["backend"] = kernels["backend"]
    frame = torch.full((6, 71), 9.0, device=device)
    langevin_step(x, grad, anchor, out=frame[1:5, 2:69], **options)
    close(frame[1:5, 2:69], expected)
    frame[1:5, 2:69] = 9.0
    assert (frame == 9.0).all()
    shifted = memory[3 : 3 + 4 * 67].view(4, 67)
    langevin_step(x, grad, anchor, out=shifted, **options)
    close(shifted, expected)


@pytest.mark.parametrize("elements", [5, 8, 1024, 2051])
@pytest.mark.parametrize("shift", [1, 2, 4])
def test_borders_and_alignment(kernels, elements, shift):
    """Write an output inside an array of NaN, at any alignment, also in place."""
    device, count = kernels["device"], 3 * elements
    x, grad, anchor = tensors((3, elements), device=device)
    options = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rng": RNG}
    expected = langevin_step(x, grad, anchor, backend="reference", **options)
    memory = torch.full((count + 16,), float("nan"), device=device)
    out = memory[shift : shift + count].view(3, elements)
    langevin_step(x, grad, anchor, out=out, backend=kernels["backend"], **options)
    close(out, expected)
    out.copy_(x)
    langevin_step_(out, grad, anchor, backend=kernels["backend"], **options)
    close(out, expected)
    assert memory[:shift].isnan().all()
    assert memory[shift + count :].isnan().all()


def test_first_bad(kernels):
    # Triton's interpreter is slow: fewer programs, but more than one.
    n = 40 if kernels["device"].type == "cpu" and kernels["backend"] == "triton" else 300
    x, grad, anchor = tensors((n, 3, 32), device=kernels["device"])
    first_bad = torch.full((), NEVER, device=kernels["device"])
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "first_bad": first_bad}
    langevin_step(x, grad, anchor, rng=(5, 76, 0), backend=kernels["backend"], **options)
    assert int(first_bad) == NEVER
    grad[n - 9, 1, 1], grad[n - 2, 0, 0] = float("nan"), float("-inf")
    for draw in (2**32 - 2, 2**32 - 1):
        langevin_step(x, grad, anchor, rng=(5, draw, 0), backend=kernels["backend"], **options)
    assert divmod(int(first_bad), 2**31) == (2**32 - 2, n - 9)


@pytest.mark.parametrize("shape", [(40, 3, 7), (2, 2050), (0, 5)])
def test_rng_state_is_read_and_advanced(kernels, shape):
    """Compare three steps with an rng_state to three steps with explicit positions."""
    x, grad, anchor = tensors(shape, device=kernels["device"])
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "backend": kernels["backend"]}
    rng = rng_state(seed=2**64 - 3, draw=11, first_sample=2**40, device=kernels["device"])
    for draw in (11, 12, 13):
        expected = langevin_step(x, grad, anchor, rng=(2**64 - 3, draw, 2**40), **options)
        assert torch.equal(langevin_step(x, grad, anchor, rng=rng, **options), expected)
    assert rng.tolist() == [-3, 14, 2**40, 0]


def phase_of(steps, batch, *, per_sample, device):
    """Return a phase, and its coefficients as `langevin_step` takes them."""
    values = {"drift": 0.7, "pull": 0.2, "noise_std": 0.3, "rescale": 1.4}
    if per_sample:
        scale = torch.linspace(0.5, 2, batch, device=device)
        values = {name: c * scale if name != "rescale" else c for name, c in values.items()}
    return Phase(steps, **values, key=Key(-5, 76, 1000)), values


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("key_on_device", [False, True])
def test_bound_steps_equal_single_ones(kernels, per_sample, key_on_device):
    device, options = kernels["device"], {"backend": kernels["backend"]}
    x, grad, anchor = tensors((5, 3, 7), device=device)
    phase, values = phase_of(3, 5, per_sample=per_sample, device=device)
    if key_on_device:
        seed, first = (torch.tensor(n, device=device) for n in (-5, 1000))
        phase = replace(phase, key=Key(seed, 76, first))
    first_bad = torch.full((), NEVER, device=device)
    y, expected = x.clone(), x.clone()
    step = bound_step(y, anchor, phase, first_bad=first_bad, **options)
    strided = grad.transpose(1, 2).contiguous().transpose(1, 2)
    for k, gradient in enumerate((grad, strided, grad.double()), 1):
        version = y._version
        step(gradient)
        assert y._version > version
        now = {**values, "rescale": 1.4 if k == 3 else 1.0, "rng": (-5, 76 + k, 1000)}
        langevin_step_(expected, gradient, anchor, first_bad=first_bad, **now, **options)
        assert torch.equal(y, expected)
    assert int(first_bad) == NEVER


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (4, 3)])
def test_bound_steps_of_no_elements_and_in_float64(shape):
    y, grad, _ = tensors(shape, dtype=torch.float64)
    phase, values = phase_of(1, shape[0], per_sample=False, device="cpu")
    phase, values = replace(phase, pull=0.0), {**values, "pull": 0.0}
    expected = langevin_step(y, grad, None, rng=(-5, 77, 1000), **values)
    bound_step(y, None, phase, first_bad=None)(grad)
    assert torch.equal(y, expected)


def test_bound_steps_in_memory_that_kernels_cannot_write():
    """Use a strided state, and an anchor that partly overlaps it."""
    phase, _ = phase_of(2, 4, per_sample=False, device="cpu")
    x, grad, anchor = tensors((4, 3))
    memory = torch.zeros(4, 6)
    strided, shifted = memory[:, ::2], torch.zeros(15)
    strided.copy_(x)
    shifted[:12].view(4, 3).copy_(x)
    expected = x.clone()
    for y, center in ((strided, anchor), (expected, anchor)):
        step = bound_step(y, center, phase, first_bad=None)
        step(grad), step(grad)
    assert torch.equal(strided, expected)
    assert (memory[:, 1::2] == 0).all()
    y, center = shifted[:12].view(4, 3), shifted[3:].view(4, 3)
    expected = langevin_step(
        x, grad, center.clone(), drift=0.7, pull=0.2, noise_std=0.3, rng=(-5, 77, 1000)
    )
    bound_step(y, center, phase, first_bad=None)(grad)
    assert torch.equal(y, expected)


def test_bound_steps_check_the_phase():
    x, _, anchor = tensors((4, 3))
    phase, _ = phase_of(2, 4, per_sample=False, device="cpu")
    for change, message in (
        ({"steps": -1}, "steps must be in"),
        ({"key": Key(0, 2**32 - 2)}, r"draw \+ steps must be in"),
        ({"drift": torch.zeros(3)}, "drift must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            bound_step(x, anchor, replace(phase, **change), first_bad=None)


def test_a_step_in_place_marks_the_state_as_modified(kernels):
    x, grad, _ = tensors(device=kernels["device"])
    leaf = torch.ones_like(x, requires_grad=True)
    product = (leaf * x).sum()
    options = {"drift": 0.5, "pull": 0.0, "noise_std": 0.2, "rng": RNG}
    langevin_step_(x, grad, None, backend=kernels["backend"], **options)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_tracked_step_is_differentiable():
    x, grad, anchor = tensors()
    x.requires_grad_(True)
    y = langevin_step(x, grad, anchor, drift=0.5, pull=0.1, noise_std=0.2, rng=RNG)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 0.9))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 3, 5, dtype=torch.int64)}, TypeError, "x must be float32 or float64"),
        ({"grad": torch.zeros(4, 3)}, ValueError, r"grad must have x's shape \(4, 3, 5\)"),
        ({"anchor": torch.zeros(4, 3, 5).double()}, TypeError, "anchor must be torch.float32"),
        ({"drift": torch.zeros(3)}, ValueError, r"drift must be a number or have shape \(4,\)"),
        ({"anchor": None}, ValueError, "without an anchor, pull must be 0.0"),
        ({"out": torch.zeros(4, 3, 4)}, ValueError, "out must have x's shape"),
        ({"x": torch.zeros(())}, ValueError, "batch dimension"),
        ({"grad": torch.zeros(4, 3, 5).long()}, TypeError, "grad must be of a floating dtype"),
        ({"rng": (1, 2)}, ValueError, "rng must be"),
        ({"rng": (1, -2, 0)}, ValueError, "draw must be in"),
        ({"rng": torch.zeros(4)}, TypeError, "rng must be int64"),
        ({"rng": torch.zeros(3).long()}, ValueError, "rng must have 4 elements"),
        ({"first_bad": torch.zeros(2).long()}, ValueError, "first_bad must have 1 elements"),
    ],
)
def test_bad_arguments(change, error, message):
    x, grad, anchor = tensors()
    values = {"x": x, "grad": grad, "anchor": anchor, **change}
    options = {"drift": 0.5, "pull": 0.1, "noise_std": 0.2, "rng": RNG}
    options |= {k: values.pop(k) for k in ("drift", "out", "rng", "first_bad") if k in values}
    with pytest.raises(error, match=message):
        langevin_step(values["x"], values["grad"], values["anchor"], **options)
