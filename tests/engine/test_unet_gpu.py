"""An initializer's pass by the operations for GPUs, against the module."""

from dataclasses import replace

import pytest
import torch

from cdrl_fast import CDRL, BackendUnavailable, NoiseSchedule, ResNetEnergy, Sampler
from cdrl_fast.engine.cuda_graph import capture
from cdrl_fast.engine.folding.unet import fold_unet
from cdrl_fast.engine.initializer import ImageInitializer
from cdrl_fast.engine.unet_gpu import UNetPasses
from cdrl_fast.networks import UNetInitializer
from cdrl_fast.precision import resolve
from tests import unet_cases
from tests.conftest import randomize
from tests.unet_cases import CASES

CPU = torch.device("cpu")
NAMES = ("fp64", "fp32", "bf16", "fp16")
PRECISIONS = {name: resolve(name, CPU, planned=False) for name in NAMES}
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}
# Few programs: the interpreter takes milliseconds for each.
SMALL = "one level"


def made(name, **options):
    return unet_cases.made(CASES[name], **options)


@torch.no_grad()
def run(network, x, logsnr, label, name, *, backend="reference", device=CPU):
    """Ours, and the module's in float64."""
    precision = PRECISIONS[name]
    folded = fold_unet(network, device, precision.state)
    rows = folded.at(
        logsnr.to(device, precision.state), None if label is None else label.to(device)
    )
    passes = UNetPasses(folded.weights, precision=precision, backend=backend)
    out = passes(x.to(device, precision.state), rows)
    exact = network.double()(x.double().cpu(), logsnr.double(), label)
    network.float()
    return out.cpu(), exact


def close(got, exact, tolerance):
    assert got.isfinite().all()
    assert ((got - exact).abs() <= tolerance * exact.abs().max()).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_is_the_module(name, precision):
    got, exact = run(*made(name), precision)
    assert got.dtype == PRECISIONS[precision].state
    close(got, exact, TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_triton_is_the_module(interpreter, precision):
    network, x, logsnr, _ = made(SMALL)
    got, exact = run(network, x[:2], logsnr[:2], None, precision, backend="triton")
    close(got, exact, TOLERANCE[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(name, precision):
    got, exact = run(*made(name), precision, backend="triton", device=torch.device("cuda"))
    close(got, exact, TOLERANCE[precision])


def test_one_level_serves_all():
    network, x, logsnr, label = made("narrowing")
    got, exact = run(network, x, logsnr[:1], label[1:2], "fp32")
    close(got, exact, TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fresh_networks_return_their_input(precision):
    """The state is never rounded to the networks' precision."""
    network, x, logsnr, label = made("two blocks, odd width", std=0)
    got, _ = run(network, x, logsnr, label, precision)
    assert torch.equal(got, x)


def test_views_and_empty_batches():
    network, x, logsnr, label = made("narrowing")
    folded = fold_unet(network, CPU, torch.float32)
    passes, rows = (
        UNetPasses(folded.weights, precision=PRECISIONS["fp16"]),
        folded.at(logsnr, label),
    )
    turned = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert torch.equal(passes(turned, rows), passes(x, rows))
    assert passes(turned, rows).is_contiguous()
    assert passes(x[:0], rows[:1]).shape == (0, 2, 10, 10)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plan_takes_new_weights_into_the_same_memory(monkeypatch, precision):
    monkeypatch.setattr("cdrl_fast.engine.initializer.uses_gpu_passes", lambda *_: True)
    network, x, logsnr, label = made("narrowing")
    plan = ImageInitializer(network, device=CPU, precision=PRECISIONS[precision], backend="auto")
    assert type(plan.operation) is UNetPasses
    places = [t.data_ptr() for t in plan.operation.weights()]
    assert not set(places) & {t.data_ptr() for t in plan.folded.weights.tensors()}
    before = plan.forward(x, *plan.level_inputs(logsnr, label))
    randomize(network, seed=1, std=0.05)
    plan.refresh()
    assert [t.data_ptr() for t in plan.operation.weights()] == places
    after = plan.forward(x, *plan.level_inputs(logsnr, label))
    assert not torch.equal(before, after)
    close(after, run(network, x, logsnr, label, precision)[1], TOLERANCE[precision])


@pytest.mark.parametrize("name", ["tf32", "fp32"])
def test_float32_products_are_as_asked_and_torch_is_left_as_it_was(monkeypatch, name):
    network, x, logsnr, label = made("narrowing")
    folded, seen = fold_unet(network, CPU, torch.float32), set()
    convolve, flags = torch.nn.functional.conv2d, torch.backends.cudnn.conv

    def spy(*arguments, **rest):
        seen.add(flags.fp32_precision)
        return convolve(*arguments, **rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", spy)
    passes = UNetPasses(folded.weights, precision=resolve(name, CPU, planned=False))
    before = flags.fp32_precision, torch.backends.cudnn.allow_tf32
    passes(x, folded.at(logsnr, label))
    assert seen == {"tf32" if name == "tf32" else "ieee"}
    assert (flags.fp32_precision, torch.backends.cudnn.allow_tf32) == before


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CDRL(
        randomize(ResNetEnergy(1, 32, (1,), 1), std=0.02),
        randomize(UNetInitializer(1, 2, 4, (1,), 1, attention=(), dropout=0.0), std=0.05),
        NoiseSchedule(levels=1, steps=1),
    )


def test_sampler_takes_it_where_asked(interpreter, model):
    expected = Sampler(model, precision="fp32").sample(1, seed=1)
    sampler = Sampler(model, precision="fp32", backend="triton")
    assert sampler._frozen._initializers[0].operation.backend == "triton"
    torch.testing.assert_close(sampler.sample(1, seed=1), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_takes_other_inputs_and_weights(precision):
    """Replayed for another x, other rows and other weights, and nothing waits for the device."""
    device = torch.device("cuda")
    network, *rest = made("colour, 32")
    x, logsnr, label = (tensor.to(device) for tensor in rest)
    plan = ImageInitializer(network, device=device, precision=PRECISIONS[precision], backend="auto")
    assert plan.operation.backend == "triton"
    (rows,), out = plan.level_inputs(logsnr, label), torch.empty_like(x)
    replay = capture(lambda: out.copy_(plan.forward(x, rows)), device)
    randomize(network, seed=1, std=0.05)
    plan.refresh()
    x.normal_()
    rows.copy_(plan.level_inputs(logsnr.flip(0), label)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        replay()
        expected = plan.forward(x, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close(out, expected, TOLERANCE[precision])


def test_refuses():
    weights = fold_unet(made("narrowing")[0], CPU, torch.float32).weights
    passes = UNetPasses(weights, precision=PRECISIONS["fp16"])
    x, rows = torch.zeros(4, 2, 10, 10), torch.zeros(4, 280)
    with pytest.raises(ValueError, match=r"UNetPasses: x must have shape \(batch, 2, 10, 10\)"):
        passes(x[:, :, :8], rows)
    with pytest.raises(TypeError, match="rows must be torch.float32"):
        passes(x, rows.half())
    with pytest.raises(ValueError, match="image_size must be a multiple of 2, got 9"):
        UNetPasses(replace(weights, image_size=9), precision=PRECISIONS["fp32"])
    with pytest.raises(BackendUnavailable, match="works on CPUs|no kernel of it"):
        UNetPasses(weights, precision=PRECISIONS["fp32"], backend="native")
