"""`energy_gradient` in C++ against its reference and autograd."""

from dataclasses import replace

import pytest
import torch

from cdrl_fast import CDRL, BackendUnavailable, ResNetEnergy
from cdrl_fast.engine.folding.energy import fold_resnet
from cdrl_fast.ops.energy_gradient import EnergyGradient, native, reference
from tests.conftest import randomize

CPU = torch.device("cpu")
# Image channels, width, multipliers and blocks of a network; then height, width and batch.
CASES = {
    "small": ((1, 12, (1,), 1), 9, 13, 3),
    "two stages": ((2, 8, (1, 2), 2), 10, 14, 7),
    "three stages": ((3, 32, (1, 2, 2), 1), 28, 28, 4),
    "narrowing": ((3, 10, (2, 1), 2), 8, 8, 5),
    "four pixels": ((3, 16, (1, 2, 2, 2), 1), 32, 32, 9),
    "large": ((1, 16, (1, 1), 1), 64, 64, 2),
    "digits": (None, 8, 8, 70),
}


def network_and_inputs(name, seed=0):
    """Return a network in eval mode, states, and mixed levels and labels, in float32."""
    options, height, width, batch = CASES[name]
    torch.manual_seed(seed)
    if options is None:
        energy = CDRL.from_pretrained("digits").energy
    else:
        energy = randomize(ResNetEnergy(*options), std=0.02)
    y = torch.randn(batch, energy.stem.in_channels, height, width)
    logsnr = torch.linspace(-5, 9.8, batch)
    label = torch.arange(batch) % (energy.num_classes + 1) if energy.num_classes else None
    return energy, y, logsnr, label


def fold(energy, dtype=torch.float32):
    return fold_resnet(energy, CPU, dtype)


def autograd(energy, y, logsnr, label):
    y = y.detach().requires_grad_(True)
    value = energy(y, logsnr, label)
    return value.detach(), torch.autograd.grad(value.sum(), y)[0]


def unpacked(signs, weights, height, width):
    """Return booleans per activation map, in order, from uint8 (batch, activations)."""
    shapes = []
    for i, stage in enumerate(weights.stages):
        size = (height >> i, width >> i)
        for block in stage:
            shapes += [(block.conv1.shape[1], *size), (block.conv1.shape[0], *size)]
    shapes.append((len(weights.blocks[-1].bias), *size))
    parts = torch.split(signs.bool(), [c * h * w for c, h, w in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def run(weights, y, rows, head, *, bfloat16=False):
    """Return energies, gradients and signs of the native kernel, written over NaN."""
    height, width = y.shape[-2:]
    kernel = native.ResNetGradient(weights, height, width, bfloat16=bfloat16)
    energy = torch.full((len(y),), float("nan"))
    gradient = torch.full_like(y, float("nan"))
    count = sum(
        (block.conv1.shape[0] + block.conv1.shape[1]) * (height >> i) * (width >> i)
        for i, stage in enumerate(weights.stages)
        for block in stage
    )
    last = len(weights.stages) - 1
    count += len(weights.blocks[-1].bias) * (height >> last) * (width >> last)
    signs = torch.full((len(y), count), 7, dtype=torch.uint8)
    kernel.run(y, rows, head, energy, gradient, signs)
    assert signs.max() <= 1
    return energy, gradient, unpacked(signs, weights, height, width)


def errors(actual, exact):
    """Return each sample's largest error, relative to its largest exact entry."""
    return (actual - exact).abs().flatten(1).amax(1) / exact.abs().flatten(1).amax(1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shared", [False, True], ids=["mixed", "one level"])
def test_float32(variant, name, shared):
    energy, y, logsnr, label = network_and_inputs(name)
    if shared:
        logsnr, label = logsnr[:1], None if label is None else label[3:4]
    folded, exact = fold(energy), fold(energy.double(), torch.float64)
    # The embedding of 1000·u has an error in float32: the exact network takes the same rows.
    rows, head = folded.at(logsnr, label)
    value, gradient, signs = run(folded.weights, y, rows, head)
    fixed, rows, head = reference.Signs(signs), rows.double(), head.double()
    expected, slope = reference.value_and_gradient(exact.weights, y.double(), rows, head, fixed)
    assert ((value - expected).abs() <= 1e-5 * expected.abs().max()).all()
    assert (errors(gradient, slope) <= 1e-5).all()
    # Nearly all signs equal those of the exact network.
    free = reference.Signs()
    _, slope = reference.value_and_gradient(exact.weights, y.double(), rows, head, free)
    differ = sum((a != b).sum().item() for a, b in zip(signs, free.recorded, strict=True))
    assert differ <= 1e-4 * sum(s.numel() for s in signs) + 1


@pytest.mark.parametrize("name", ["digits", "three stages", "four pixels"])
def test_float32_errs_no_more_than_autograd(name):
    """Compare median errors, each with its own signs, to float64: at most twice autograd's."""
    energy, y, logsnr, label = network_and_inputs(name)
    folded = fold(energy)
    _, gradient = EnergyGradient(folded.weights, *y.shape[-2:]).value_and_gradient(
        y, *folded.at(logsnr, label)
    )
    _, autograds = autograd(energy, y, logsnr, label)
    _, exact = autograd(energy.double(), y.double(), logsnr.double(), label)
    assert errors(gradient, exact).median() <= 1e-5
    assert errors(gradient, exact).median() <= 2 * errors(autograds, exact).median()


@pytest.mark.parametrize("name", CASES)
def test_bfloat16(variant, name):
    """Compare with equal signs: errors stay near the rounding of a product, 2⁻⁹."""
    energy, y, logsnr, label = network_and_inputs(name)
    folded, exact = fold(energy), fold(energy.double(), torch.float64)
    rows, head = exact.at(logsnr.double(), label)
    value, gradient, signs = run(folded.weights, y, *folded.at(logsnr, label), bfloat16=True)
    expected, slope = reference.value_and_gradient(
        exact.weights, y.double(), rows, head, reference.Signs(signs)
    )
    assert ((value - expected).abs() <= 0.02 * expected.abs().max()).all()
    assert (errors(gradient, slope) <= 0.03).all()
    assert (errors(gradient, slope) > 1e-5).any()  # float32 would be more accurate


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["digits", "two stages", "four pixels"])
def test_a_sample_does_not_depend_on_its_batch(variant, name, bfloat16):
    energy, y, logsnr, label = network_and_inputs(name)
    folded = fold(energy)
    rows, head = folded.at(logsnr, label)
    operation = EnergyGradient(folded.weights, *y.shape[-2:], bfloat16=bfloat16)
    value, gradient = operation.value_and_gradient(y, rows, head)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(1, 3), slice(2, len(y))):
                v, g = operation.value_and_gradient(y[part].clone(), rows[part], head[part])
                assert torch.equal(v, value[part])
                assert torch.equal(g, gradient[part])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(operation.value(y, rows, head), value)


def test_views_out_and_empty_batches(variant):
    energy, y, logsnr, label = network_and_inputs("two stages")
    folded = fold(energy)
    rows, head = folded.at(logsnr[:1], label)
    operation = EnergyGradient(folded.weights, 10, 14)
    value, gradient = operation.value_and_gradient(y, rows, head)
    permuted = y.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    out = torch.full_like(y, float("nan"))
    v, g = operation.value_and_gradient(permuted, rows, head, out=out)
    assert g is out
    assert torch.equal(v, value)
    assert torch.equal(g, gradient)
    v, g = operation.value_and_gradient(y[:0], rows, head)
    assert v.shape == (0,)
    assert g.shape == (0, 2, 10, 14)


def test_torchs_default_dtype_does_not_matter(variant, request):
    energy, y, logsnr, label = network_and_inputs("two stages")
    folded = fold(energy)
    rows, head = folded.at(logsnr, label)
    operation = EnergyGradient(folded.weights, 10, 14)
    expected = operation.value_and_gradient(y, rows, head)
    request.getfixturevalue("double_by_default")
    for a, b in zip(operation.value_and_gradient(y, rows, head), expected, strict=True):
        assert torch.equal(a, b)


def test_load_replaces_the_weights(variant):
    energy, y, logsnr, label = network_and_inputs("two stages")
    other = network_and_inputs("two stages", seed=1)[0]
    folded, changed = fold(energy), fold(other)
    operation = EnergyGradient(folded.weights, 10, 14)
    operation.load(changed.weights)
    rows, head = changed.at(logsnr, label)
    value, gradient = operation.value_and_gradient(y, rows, head)
    fresh = EnergyGradient(changed.weights, 10, 14).value_and_gradient(y, rows, head)
    assert torch.equal(value, fresh[0])
    assert torch.equal(gradient, fresh[1])


def test_working_memory_is_a_twentieth_of_autograds():
    """Compare the kernel's workspace to the tensors that autograd saves for one gradient."""
    energy, y, logsnr, label = network_and_inputs("digits")
    energy.requires_grad_(False)
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    y = torch.randn(512, 1, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        autograd(energy, y, logsnr[:1], label[:1])
    folded = fold(energy)
    for bfloat16 in (False, True):
        operation = EnergyGradient(folded.weights, 8, 8, bfloat16=bfloat16)
        assert operation.working_memory(512) <= sum(saved.values()) / 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": torch.zeros(7, 3, 10, 14)}, ValueError, r"y must have shape \(batch, 2, 10, 14\)"),
        ({"rows": torch.zeros(2, 48)}, ValueError, r"rows must have shape \(1 or 7, 48\)"),
        ({"head": torch.zeros(1, 15)}, ValueError, r"head must have shape \(1 or 7, 16\)"),
        ({"y": torch.zeros(7, 2, 10, 14).double()}, TypeError, "y must be torch.float32"),
        ({"rows": torch.zeros(48, 7).mT}, ValueError, "rows must be dense"),
        ({"rows": torch.zeros(1, 48).double()}, TypeError, "rows must be torch.float32"),
        ({"head": torch.zeros(16, 7).mT}, ValueError, "head must be dense"),
        ({"out": torch.zeros(7, 2, 14, 10).mT}, ValueError, "out must be dense"),
        ({"out": torch.zeros(6, 2, 10, 14)}, ValueError, r"out must be dense \(7, 2, 10, 14\)"),
        ({"out": torch.zeros(7, 2, 10, 14).double()}, TypeError, "out must be torch.float32"),
    ],
)
def test_bad_arguments(change, error, message):
    energy, y, logsnr, label = network_and_inputs("two stages")
    folded = fold(energy)
    rows, head = folded.at(logsnr, label)
    operation = EnergyGradient(folded.weights, 10, 14)
    with pytest.raises(error, match=message):
        operation.value_and_gradient(**{"y": y, "rows": rows, "head": head, **change})


def test_a_gradient_over_its_arguments(variant):
    energy, y, logsnr, label = network_and_inputs("two stages")
    folded = fold(energy)
    rows, head = folded.at(logsnr, label)
    operation = EnergyGradient(folded.weights, 10, 14)
    _, expected = operation.value_and_gradient(y, rows, head)
    memory = torch.cat([y.flatten(), y.new_zeros(1)])
    x, shifted = memory[:-1].view(y.shape), memory[1:].view(y.shape)
    with pytest.raises(ValueError, match="out must not share memory with y"):
        operation.value_and_gradient(x, rows, head, out=shifted)
    with pytest.raises(ValueError, match="out must not share memory with rows"):
        operation.value_and_gradient(y, memory[: rows.numel()].view(rows.shape), head, out=x)
    _, gradient = operation.value_and_gradient(x, rows, head, out=x)
    assert torch.equal(gradient, expected)


def with_block(weights, stage, index, **change):
    """Return the weights with a changed block."""
    stages = [list(blocks) for blocks in weights.stages]
    stages[stage][index] = replace(stages[stage][index], **change)
    return replace(weights, stages=tuple(map(tuple, stages)))


BAD_WEIGHTS = {
    "stem": (lambda w: replace(w, stem=w.stem[0]), ValueError, "stem must be"),
    "half": (lambda w: replace(w, stem=w.stem.half()), ValueError, "stem must be .*torch.float16"),
    "bias": (lambda w: replace(w, stem_bias=w.stem_bias[:-1]), ValueError, "stem_bias must be"),
    "none": (lambda w: replace(w, stages=()), ValueError, "stages must have the same number"),
    "fewer": (
        lambda w: replace(w, stages=(w.stages[0], w.stages[1][:1])),
        ValueError,
        r"stages must have the same number of blocks, one or more, got \[2, 1\]",
    ),
    # Twelve channels are no multiple of eight.
    "width": (
        lambda w: with_block(w, 1, 0, bias=torch.zeros(12), conv2=torch.zeros(12, 12, 3, 3)),
        ValueError,
        r"conv1 must be dense \(8, 8, 3, 3\)",
    ),
    "uneven": (
        lambda w: with_block(w, 1, 1, bias=torch.zeros(8)), ValueError, "bias must be dense"
    ),
    "no shortcut": (
        lambda w: with_block(w, 1, 0, shortcut=None), ValueError, "and only if its channels change"
    ),
    "strided": (
        lambda w: with_block(w, 0, 0, conv1=w.stages[0][0].conv1.mT), ValueError, "conv1 must be"
    ),
    "double": (
        lambda w: with_block(w, 0, 0, conv2=w.stages[0][0].conv2.double()),
        TypeError,
        "conv2 must be torch.float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_do_not_fit(backend, name):
    change, error, message = BAD_WEIGHTS[name]
    weights = fold(network_and_inputs("two stages")[0]).weights
    operation = EnergyGradient(weights, 10, 14, backend=backend)
    with pytest.raises(error, match=message):
        EnergyGradient(change(weights), 10, 14, backend=backend)
    with pytest.raises(error, match=message):
        operation.load(change(weights))
    assert operation.weights is weights


@pytest.mark.parametrize("other", ["small", "narrowing"])
def test_load_refuses_weights_of_another_form(other):
    operation = EnergyGradient(fold(network_and_inputs("two stages")[0]).weights, 10, 14)
    with pytest.raises(ValueError, match="weights must have the form"):
        operation.load(fold(network_and_inputs(other)[0]).weights)
    with pytest.raises(ValueError, match="weights must have the form"):
        operation.load(fold(network_and_inputs("two stages")[0].double(), torch.float64).weights)


def test_unavailable_options():
    weights = fold(network_and_inputs("two stages")[0]).weights
    with pytest.raises(ValueError, match="multiples of 2, got 9 and 14"):
        EnergyGradient(weights, 9, 14)
    with pytest.raises(BackendUnavailable, match="works on CUDA devices"):
        EnergyGradient(weights, 10, 14, backend="cuda")
    with pytest.raises(BackendUnavailable, match="bfloat16 needs the native backend"):
        EnergyGradient(weights, 10, 14, bfloat16=True, backend="reference")
