"""`unet_forward` in C++ and its reference, against the module in float64."""

from dataclasses import replace

import pytest
import torch

from cdrl_fast import BackendUnavailable
from cdrl_fast.engine.folding.unet import fold_unet
from cdrl_fast.ops.unet_forward import UNetForward, native
from tests import unet_cases

CPU = torch.device("cpu")
CASES = {
    **unet_cases.CASES,
    "digits": (None, 10, 70),
    "no attention but the middle's": ((1, 8, 32, (1, 2, 2), 1, ()), 0, 5),
    "one level": (unet_cases.CASES["one level"][0], 0, 33),
}


def network_and_inputs(name, **options):
    return unet_cases.network_and_inputs(CASES[name], **options)


@torch.no_grad()
def exactly(network, x, logsnr, label):
    """Return the module's output, its rows and the folded module, all in float64.

    The module stays in float64.
    """
    network, logsnr = network.double(), logsnr.double()
    folded = fold_unet(network, CPU, torch.float64)
    return network(x.double(), logsnr, label), folded.at(logsnr, label), folded


def operation_of(network):
    return UNetForward(fold_unet(network, CPU, torch.float32).weights)


def close(actual, exact):
    assert ((actual - exact).abs() <= 1e-5 * exact.abs().max()).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shared", [False, True], ids=["mixed", "one level"])
def test_float32(variant, name, shared):
    network, x, logsnr, label = network_and_inputs(name)
    if shared:
        logsnr, label = logsnr[:1], None if label is None else label[1:2]
    operation = operation_of(network)
    exact, rows, _ = exactly(network, x, logsnr, label)
    assert len(rows) == (1 if shared else len(x))
    poisoned = torch.full((len(x) + 2, *x.shape[1:]), float("nan"))
    native.UNet(operation.weights).run(x, rows.float(), poisoned[1:-1])
    assert operation.backend == "native"
    close(poisoned[1:-1], exact)
    assert poisoned[[0, -1]].isnan().all()
    assert torch.equal(operation(x, rows.float()), poisoned[1:-1])


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_module(name):
    network, x, logsnr, label = network_and_inputs(name)
    exact, rows, folded = exactly(network, x, logsnr, label)
    operation = UNetForward(folded.weights)
    assert operation.backend == "reference"
    assert operation.working_memory(3) is None
    out = operation(x.double(), rows)
    assert ((out - exact).abs() <= 1e-12 * exact.abs().max()).all()


def test_the_reference_in_float32():
    network, x, logsnr, label = network_and_inputs("two blocks, odd width")
    operation = UNetForward(fold_unet(network, CPU, torch.float32).weights, backend="reference")
    exact, rows, _ = exactly(network, x, logsnr, label)
    close(operation(x, rows.float()), exact)


def test_fresh_networks_return_their_input(variant):
    """Convolutions that are initialized with zeros add nothing, not even a rounding error."""
    for name in ("grey, 28", "two blocks, odd width"):
        network, x, logsnr, label = network_and_inputs(name, std=0)
        folded = fold_unet(network, CPU, torch.float32)
        assert torch.equal(UNetForward(folded.weights)(x, folded.at(logsnr, label)), x)


def test_large_activations(variant):
    """Softmax and SiLU are accurate for arguments far from zero."""
    network, x, logsnr, label = network_and_inputs("two blocks, odd width", std=0.3)
    operation = operation_of(network)
    exact, rows, _ = exactly(network, 30 * x, logsnr, label)
    close(operation(30 * x, rows.float()), exact)


@pytest.mark.parametrize("name", ["digits", "grey, 28", "two blocks, odd width", "one level"])
def test_a_sample_does_not_depend_on_its_batch(variant, name):
    network, x, logsnr, label = network_and_inputs(name)
    folded = fold_unet(network, CPU, torch.float32)
    rows, operation = folded.at(logsnr, label), UNetForward(folded.weights)
    mixed, shared = operation(x, rows), operation(x, rows[1:2])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(1, 3), slice(2, len(x))):
                assert torch.equal(operation(x[part].clone(), rows[part]), mixed[part])
                assert torch.equal(operation(x[part].clone(), rows[1:2]), shared[part])
    finally:
        torch.set_num_threads(threads)


def test_a_nan_stays_in_its_sample(variant):
    network, x, logsnr, label = network_and_inputs("two blocks, odd width")
    folded = fold_unet(network, CPU, torch.float32)
    rows, operation = folded.at(logsnr, label), UNetForward(folded.weights)
    expected = operation(x, rows)
    x_nan = x.clone()
    x_nan[2, 0, 3, 3] = float("nan")
    out = operation(x_nan, rows)
    assert out[2].isnan().all()
    others = [i for i in range(len(x)) if i != 2]
    assert torch.equal(out[others], expected[others])
    assert torch.equal(operation(x, rows), expected)


def test_views_and_empty_batches(variant):
    network, x, logsnr, label = network_and_inputs("colour, 32")
    folded = fold_unet(network, CPU, torch.float32)
    rows, operation = folded.at(logsnr, label), UNetForward(folded.weights)
    permuted = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert torch.equal(operation(permuted, rows), operation(x, rows))
    assert operation(x[:0], rows[:1]).shape == (0, 3, 32, 32)
    assert operation(x[:0], rows[:0]).shape == (0, 3, 32, 32)


def test_torchs_default_dtype_does_not_matter(variant, request):
    network, x, logsnr, label = network_and_inputs("narrowing")
    folded = fold_unet(network, CPU, torch.float32)
    rows, operation = folded.at(logsnr, label), UNetForward(folded.weights)
    expected = operation(x, rows)
    request.getfixturevalue("double_by_default")
    assert torch.equal(operation(x, rows), expected)


def test_load_replaces_the_weights(variant):
    network, x, logsnr, label = network_and_inputs("narrowing")
    changed = fold_unet(network_and_inputs("narrowing", seed=1)[0], CPU, torch.float32)
    operation, rows = operation_of(network), changed.at(logsnr, label)
    operation.load(changed.weights)
    assert torch.equal(operation(x, rows), UNetForward(changed.weights)(x, rows))


def test_working_memory_does_not_grow_with_the_batch():
    """A thread computes a few samples at a time."""
    operation = operation_of(network_and_inputs("digits")[0])
    if operation.backend != "native":
        pytest.skip("not on this machine")
    assert operation.working_memory(4096) == operation.working_memory(1024)
    assert operation.working_memory(1) < operation.working_memory(1024) < 2**20 * 16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 3, 10, 10)}, ValueError, r"x must have shape \(batch, 2, 10, 10\)"),
        ({"rows": torch.zeros(3, 280)}, ValueError, r"of shape \(1 or 4, 280\), got \(3, 280\)"),
        ({"rows": torch.zeros(280, 4).mT}, ValueError, "rows must be dense"),
        ({"x": torch.zeros(4, 2, 10, 10).double()}, TypeError, "x must be torch.float32"),
        ({"rows": torch.zeros(1, 280).double()}, TypeError, "rows must be torch.float32"),
    ],
)
def test_bad_arguments(change, error, message):
    network, x, logsnr, label = network_and_inputs("narrowing")
    folded = fold_unet(network, CPU, torch.float32)
    operation = UNetForward(folded.weights)
    rows = folded.at(logsnr, label)
    assert rows.shape == (4, 280)
    with pytest.raises(error, match=message):
        operation(**{"x": x, "rows": rows, **change})


def changed(weights, path, change):
    """Return the weights with ``change`` applied at a path of attributes and indices."""
    if not path:
        return change(weights)
    head, *rest = path
    if isinstance(head, str):
        return replace(weights, **{head: changed(getattr(weights, head), rest, change)})
    return tuple(changed(w, rest, change) if i == head else w for i, w in enumerate(weights))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("path", "change", "error", "message"),
    [
        (["multipliers"], lambda _: (1, 1), ValueError, "conv1's weight must be dense"),
        (["multipliers"], lambda _: (2,), ValueError, "stages must have the layers"),
        (["multipliers"], lambda _: (), ValueError, "multipliers and blocks must be positive"),
        (["blocks"], lambda _: 2, ValueError, "stages must have the layers"),
        (["attention"], lambda _: (), ValueError, "stages must have the layers"),
        (["downs"], lambda downs: downs[:1], ValueError, "stages must have the layers"),
        (["middle", 1, "qkv", "bias"], lambda t: t[:-1], ValueError, "qkv's bias must be dense"),
        (["ups", 0, 0, "conv1", "weight"], torch.Tensor.double, TypeError, "must be torch.float32"),
        (["ups", 0, 0, "shortcut"], lambda _: None, ValueError, "a shortcut if and only if"),
        (["head", "weight"], lambda t: t.mT, ValueError, "head's weight must be dense"),
        (["stem", "weight"], lambda t: t[0], ValueError, "stem must be"),
        (["stem", "weight"], lambda t: t.half(), ValueError, "stem must be .* in torch.float16"),
        (["norm", "weight"], lambda t: t[:-1], ValueError, "norm's weight must be dense"),
    ],
)
def test_weights_that_do_not_fit(backend, path, change, error, message):
    weights = fold_unet(network_and_inputs("narrowing")[0], CPU, torch.float32).weights
    operation = UNetForward(weights, backend=backend)
    bad = changed(weights, path, change)
    with pytest.raises(error, match=message):
        UNetForward(bad, backend=backend)
    with pytest.raises(error, match=message):
        operation.load(bad)
    assert operation.weights is weights


@pytest.mark.parametrize("other", ["one level", "two blocks, odd width"])
def test_load_refuses_weights_of_another_form(other):
    operation = operation_of(network_and_inputs("narrowing")[0])
    with pytest.raises(ValueError, match="weights must have the form"):
        operation.load(fold_unet(network_and_inputs(other)[0], CPU, torch.float32).weights)
    with pytest.raises(ValueError, match="weights must have the form"):
        operation.load(
            fold_unet(network_and_inputs("narrowing")[0].double(), CPU, torch.float64).weights
        )


def test_unavailable_sizes_and_backends():
    folded = fold_unet(network_and_inputs("narrowing")[0], CPU, torch.float32)
    with pytest.raises(ValueError, match="image_size must be a multiple of 2, got 9"):
        UNetForward(replace(folded.weights, image_size=9))
    with pytest.raises(BackendUnavailable, match="works on CUDA devices"):
        UNetForward(folded.weights, backend="cuda")
    exact = fold_unet(network_and_inputs("narrowing")[0].double(), CPU, torch.float64)
    with pytest.raises(BackendUnavailable, match="computes in float32, got float64 tensors"):
        UNetForward(exact.weights, backend="native")
