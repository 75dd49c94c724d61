"""An initializer on the operations for GPUs, against the module."""

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
PRECISIONS = {name: resolve(name, CPU, has_kernels=False) for name in NAMES}
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}
# Few programs: the interpreter takes milliseconds per program.
SMALL = "one level"


def example(name, **options):
    return unet_cases.network_and_inputs(CASES[name], **options)


@torch.no_grad()
def run(network, x, logsnr, label, name, *, backend="reference", device=CPU):
    """Return the passes' output, and the module's in float64."""
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


def close(actual, exact, tolerance):
    assert actual.isfinite().all()
    assert ((actual - exact).abs() <= tolerance * exact.abs().max()).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_is_the_module(name, precision):
    actual, exact = run(*example(name), precision)
    assert actual.dtype == PRECISIONS[precision].state
    close(actual, exact, TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_triton_is_the_module(interpreter, precision):
    network, x, logsnr, _ = example(SMALL)
    actual, exact = run(network, x[:2], logsnr[:2], None, precision, backend="triton")
    close(actual, exact, TOLERANCE[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(name, precision):
    actual, exact = run(*example(name), precision, backend="triton", device=torch.device("cuda"))
    close(actual, exact, TOLERANCE[precision])


def test_one_level_serves_all():
    network, x, logsnr, label = example("narrowing")
    actual, exact = run(network, x, logsnr[:1], label[1:2], "fp32")
    close(actual, exact, TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fresh_networks_return_their_input(precision):
    """The state is never rounded to the networks' precision."""
    network, x, logsnr, label = example("two blocks, odd width", std=0)
    actual, _ = run(network, x, logsnr, label, precision)
    assert torch.equal(actual, x)


def test_views_and_empty_batches():
    network, x, logsnr, label = example("narrowing")
    folded = fold_unet(network, CPU, torch.float32)
    passes, rows = (
        UNetPasses(folded.weights, precision=PRECISIONS["fp16"]),
        folded.at(logsnr, label),
    )
    strided = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert torch.equal(passes(strided, rows), passes(x, rows))
    assert passes(strided, rows).is_contiguous()
    assert passes(x[:0], rows[:1]).shape == (0, 2, 10, 10)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_takes_new_weights_into_the_same_memory(monkeypatch, precision):
    monkeypatch.setattr("cdrl_fast.engine.initializer.uses_gpu_passes", lambda *_: True)
    network, x, logsnr, label = example("narrowing")
    frozen = ImageInitializer(network, device=CPU, precision=PRECISIONS[precision], backend="auto")
    assert type(frozen.operation) is UNetPasses
    addresses = [t.data_ptr() for t in frozen.operation.weights()]
    assert not set(addresses) & {t.data_ptr() for t in frozen.folded.weights.tensors()}
    before = frozen.forward(x, *frozen.level_inputs(logsnr, label))
    randomize(network, seed=1, std=0.05)
    frozen.refresh()
    assert [t.data_ptr() for t in frozen.operation.weights()] == addresses
    after = frozen.forward(x, *frozen.level_inputs(logsnr, label))
    assert not torch.equal(before, after)
    close(after, run(network, x, logsnr, label, precision)[1], TOLERANCE[precision])


@pytest.mark.parametrize("name", ["tf32", "fp32"])
def test_convolutions_take_the_float32_precision_and_restore_torchs(monkeypatch, name):
    network, x, logsnr, label = example("narrowing")
    folded, precisions = fold_unet(network, CPU, torch.float32), set()
    convolve, flags = torch.nn.functional.conv2d, torch.backends.cudnn.conv

    def spy(*arguments, **rest):
        precisions.add(flags.fp32_precision)
        return convolve(*arguments, **rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", spy)
    passes = UNetPasses(folded.weights, precision=resolve(name, CPU, has_kernels=False))
    before = flags.fp32_precision, torch.backends.cudnn.allow_tf32
    passes(x, folded.at(logsnr, label))
    assert precisions == {"tf32" if name == "tf32" else "ieee"}
    assert (flags.fp32_precision, torch.backends.cudnn.allow_tf32) == before


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CDRL(
        randomize(ResNetEnergy(1, 32, (1,), 1), std=0.02),
        randomize(UNetInitializer(1, 2, 4, (1,), 1, attention=(), dropout=0.0), std=0.05),
        NoiseSchedule(levels=1, steps=1),
    )


def test_sampler_on_triton(interpreter, model):
    expected = Sampler(model, precision="fp32").sample(1, seed=1)
    sampler = Sampler(model, precision="fp32", backend="triton")
    assert sampler.networks._initializers[0].operation.backend == "triton"
    torch.testing.assert_close(sampler.sample(1, seed=1), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_takes_other_inputs_and_weights(precision):
    """Replayed for another x, other rows and other weights, and nothing waits for the device."""
    device = torch.device("cuda")
    network, *rest = example("colour, 32")
    x, logsnr, label = (tensor.to(device) for tensor in rest)
    options = {"device": device, "precision": PRECISIONS[precision]}
    frozen = ImageInitializer(network, backend="auto", **options)
    assert frozen.operation.backend == "triton"
    (rows,), out = frozen.level_inputs(logsnr, label), torch.empty_like(x)
    replay = capture(lambda: out.copy_(frozen.forward(x, rows)), device)
    randomize(network, seed=1, std=0.05)
    frozen.refresh()
    x.normal_()
    rows.copy_(frozen.level_inputs(logsnr.flip(0), label)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        replay()
        expected = frozen.forward(x, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close(out, expected, TOLERANCE[precision])


def test_refuses():
    weights = fold_unet(example("narrowing")[0], CPU, torch.float32).weights
    passes = UNetPasses(weights, precision=PRECISIONS["fp16"])
    x, rows = torch.zeros(4, 2, 10, 10), torch.zeros(4, 280)
    with pytest.raises(ValueError, match=r"UNetPasses: x must have shape \(batch, 2, 10, 10\)"):
        passes(x[:, :, :8], rows)
    with pytest.raises(TypeError, match="rows must be torch.float32"):
        passes(x, rows.half())
    with pytest.raises(ValueError, match="image_size must be a multiple of 2, got 9"):
        UNetPasses(replace(weights, image_size=9), precision=PRECISIONS["fp32"])
    with pytest.raises(BackendUnavailable, match="works on CPUs|no kernel for this operation"):
        UNetPasses(weights, precision=PRECISIONS["fp32"], backend="native")


def test_the_reference_backend_computes_float32_in_ieee(model, monkeypatch):
    """PyTorch's default on GPUs is TF32, in which energies of neighbours cannot be compared."""
    flags, precisions = torch.backends.cudnn.conv, set()
    before = flags.fp32_precision
    convolve = torch.nn.functional.conv2d

    def spy(*arguments, **rest):
        precisions.add(flags.fp32_precision)
        return convolve(*arguments, **rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", spy)
    Sampler(model, precision="fp32", backend="reference").sample(2)
    assert precisions == {"ieee"}
    assert flags.fp32_precision == before
