"""The noise stream: known answers, independence of batch and device, distribution."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

import cdrl_fast
from cdrl_fast.ops import philox


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, output):
    actual = philox.philox4x32([torch.tensor(c) for c in counter], key)
    assert tuple(int(part) for part in actual) == output


def scalar_normal(seed, draw, sample, element):
    """Return one normal of the stream, from its definition in Python integers and floats."""
    m32 = 0xFFFFFFFF
    c = [element // 4, draw, sample & m32, sample >> 32]
    k = [seed & m32, seed >> 32 & m32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q & m32, (p >> 32) ^ c[3] ^ k[1], p & m32]
        k = [(k[0] + 0x9E3779B9) & m32, (k[1] + 0xBB67AE85) & m32]
    pair = c[:2] if element % 4 < 2 else c[2:]
    u, v = (float(np.float32(w) * np.float32(2**-32) + np.float32(2**-33)) for w in pair)
    function = math.cos if element % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u)) * function(2 * math.pi * v)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**64 - 1, 123456789012345])
@pytest.mark.parametrize("first_sample", [0, 2**32 - 1, 2**63 - 3])
def test_normal_equals_its_definition(seed, first_sample):
    actual = cdrl_fast.normal(
        (2, 3, 3), seed=seed, draw=2**32 - 1, first_sample=first_sample, dtype=torch.float64
    )
    for i in range(2):
        for e in range(9):
            expected = scalar_normal(seed, 2**32 - 1, first_sample + i, e)
            assert actual[i].flatten()[e].item() == pytest.approx(expected, abs=1e-12)


def test_batch_shape_and_dtype_do_not_matter():
    full = cdrl_fast.normal((10, 3, 5), seed=7, draw=3)
    parts = [cdrl_fast.normal((2, 15), seed=7, draw=3, first_sample=i) for i in range(0, 10, 2)]
    assert torch.equal(full, torch.cat(parts).reshape(10, 3, 5))
    longer = cdrl_fast.normal((10, 23), seed=7, draw=3)
    assert torch.equal(longer[:, :15], full.reshape(10, 15))
    double = cdrl_fast.normal((10, 3, 5), seed=7, draw=3, dtype=torch.float64)
    assert (double - full).abs().max() < 2e-6
    reference = cdrl_fast.normal((10, 3, 5), seed=7, draw=3, backend="reference")
    assert torch.equal(double.float(), reference)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (1,), (5, 1), (2, 7)])
def test_odd_and_empty_shapes(shape):
    assert cdrl_fast.normal(shape, seed=0, draw=0).shape == shape


@pytest.mark.parametrize(
    "shape", [(3, 1), (5, 2), (1000, 2), (7, 31), (3, 33), (2, 3, 32, 32), (3, 1025), (2, 1028)]
)
@pytest.mark.parametrize("first_sample", [0, 2**32 - 2, 2**63 - 1001])
def test_backends_agree_with_the_reference(kernels, shape, first_sample):
    position = {"seed": -5, "draw": 2**32 - 1, "first_sample": first_sample}
    fast = cdrl_fast.normal(shape, **position, **kernels)
    reference = cdrl_fast.normal(shape, **position, backend="reference", dtype=torch.float64)
    assert (fast.cpu() - reference).abs().max() < 2e-6


@pytest.fixture(scope="module")
def many():
    """Ten million normals of the reference."""
    return cdrl_fast.normal((100, 100_000), seed=2, draw=1, backend="reference")


def test_large_radii_agree(kernels, many):
    """Compare 10⁷ normals, among them large radii.

    If all agree, the integers are equal: a wrong bit changes all outputs of the generator.
    """
    samples = 1 if kernels["device"].type == "cpu" and kernels["backend"] == "triton" else 100
    fast = cdrl_fast.normal((samples, 100_000), seed=2, draw=1, **kernels).cpu()
    assert fast.abs().max() > 4.2
    assert (fast - many[:samples]).abs().max() < 2e-6


def test_index_arithmetic_beyond_32_bits(kernels):
    """Compare the end of samples with more than 2³¹ elements, and samples at such offsets."""
    if kernels["backend"] != "triton" or kernels["device"].type != "cpu":
        pytest.skip("the C++ kernels have their own test; this starts a Triton kernel near the end")
    from cdrl_fast.ops.normal import triton_kernel
    from cdrl_fast.ops.triton_common import BLOCK, launch

    for shape in ((3, 2**30 + 2**20), (1, 2**31 + 4099), (2**30 + 5, 2)):
        out = torch.empty(shape)  # memory is allocated as it is touched
        call = triton_kernel.arguments(out, 7, 1, 2**40)
        skipped = call.programs - 2
        call.values["first_program"] = skipped
        launch(dataclasses.replace(call, programs=2), out.device)
        blocks = -(-shape[1] // 4)
        sample, first = divmod(skipped * BLOCK, blocks)
        assert sample * shape[1] + 4 * first > 2**31 - 2**21
        for i in range(sample, shape[0]):
            start = first if i == sample else 0
            block = torch.arange(start, min(blocks, start + 2 * BLOCK))
            counter = (block, torch.tensor(1), torch.tensor(i), torch.tensor(2**8))
            outputs = torch.stack(philox.philox4x32(counter, (7, 0)), dim=1)[None]
            expected = philox.box_muller(outputs).flatten()[: shape[1] - 4 * start]
            actual = out[i, 4 * start : 4 * start + len(expected)]
            assert (actual - expected).abs().max() < 2e-6


def test_unavailable_backend():
    with pytest.raises(cdrl_fast.BackendUnavailable, match="float64"):
        cdrl_fast.normal((2, 2), seed=0, draw=0, dtype=torch.float64, backend="native")
    with pytest.raises(cdrl_fast.BackendUnavailable, match="works on CUDA devices"):
        cdrl_fast.normal((2, 2), seed=0, draw=0, device="cpu", backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        cdrl_fast.normal((2, 2), seed=0, draw=0, backend="abacus")


def test_distribution(many):
    z = many.double().numpy().ravel()
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_neighbours_are_uncorrelated():
    """Check two million pairs of neighbouring seeds, draws, samples and elements, and squares."""
    base = {"seed": 3, "draw": 8, "first_sample": 0}
    shape = (4000, 500)
    z = cdrl_fast.normal(shape, **base).double()

    def uncorrelated(a, b):
        # A product of standard normals has variance 1; of z² - 1, variance 2 each.
        assert abs((a * b).mean()) < 4.5 / math.sqrt(a.numel())
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4.5 * 2 / math.sqrt(a.numel())

    changes = ({"seed": 4}, {"seed": 3 + 2**32}, {"draw": 9}, {"first_sample": 4000})
    for change in (*changes, {"first_sample": 2**32}):
        uncorrelated(z, cdrl_fast.normal(shape, **(base | change)).double())
    uncorrelated(z[1:], z[:-1])
    for distance in (1, 2, 3, 4):
        uncorrelated(z[:, distance:], z[:, :-distance])


def test_uniform_and_randint():
    u = philox.uniform((1000, 100), seed=1, draw=0)
    assert u.min() > 0
    assert u.max() <= 1
    assert stats.kstest(u.double().numpy().ravel(), "uniform").pvalue > 1e-4
    k = philox.randint(60_000, 6, seed=1, draw=2)
    counts = torch.bincount(k, minlength=6)
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": ()}, ValueError, "shape must be"),
        ({"shape": (2, -1)}, ValueError, "shape must be"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"draw": -1}, ValueError, r"draw must be in \[0, 4294967296\), got -1"),
        ({"draw": 2**32}, ValueError, "draw must be in"),
        ({"first_sample": -1}, ValueError, "first_sample must be in"),
        ({"first_sample": True}, TypeError, "first_sample must be an integer"),
        ({"dtype": torch.float16}, ValueError, "float32 or float64"),
    ],
)
def test_bad_arguments(arguments, error, message):
    values = {"shape": (2, 2), "seed": 0, "draw": 0, **arguments}
    with pytest.raises(error, match=message):
        cdrl_fast.normal(values.pop("shape"), **values)
