import os
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

# Before anything imports triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from cdrl_fast import (
    CDRL,
    MLPEnergy,
    MLPInitializer,
    NoiseSchedule,
    ResNetEnergy,
    UNetInitializer,
    _extension,
)
from cdrl_fast.ops import dispatch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def randomize(model, seed=0, std=0.1):
    """Add noise to every parameter, so that none keeps its initial zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


CPU_VARIANTS = ("avx512bf16", "avx512", "avx2", "portable")
BACKENDS = [
    *(pytest.param(("native", variant), id=variant) for variant in CPU_VARIANTS),
    pytest.param(("triton", "interpreted"), id="triton-interpreted"),
    pytest.param(("triton", "cuda"), id="triton", marks=pytest.mark.gpu),
    pytest.param(("cuda", "cuda"), id="cuda", marks=pytest.mark.gpu),
]


@contextmanager
def instruction_set(name):
    """Use the native kernels of one instruction set; skip the test if the machine lacks it."""
    module = _extension.load()
    if module is None or name not in module.cpu_variants():
        pytest.skip(f"this processor has no {name}, or there is no compiled module")
    before = module.cpu_variant()
    module.use_cpu_variant(name)
    try:
        yield
    finally:
        module.use_cpu_variant(before)


@pytest.fixture(params=BACKENDS)
def kernels(request):
    """Name and device of every backend with kernels.

    The native backend comes once per instruction set, Triton's also on the CPU in its interpreter.
    """
    backend, kind = request.param
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    why = dispatch.reason(backend, device)
    if kind == "interpreted" and torch.cuda.is_available():
        pytest.skip("triton compiles here")
    if why is not None:
        pytest.skip(why)
    if backend != "native":
        yield {"backend": backend, "device": device}
        return
    with instruction_set(kind):
        yield {"backend": backend, "device": device}


@pytest.fixture
def interpreter():
    """Name and device of the Triton backend in its interpreter, on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("triton compiles here")
    pytest.importorskip("triton")
    return {"backend": "triton", "device": torch.device("cpu")}


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request):
    """Device for Triton's kernels: a GPU, or the CPU with their interpreter."""
    if request.param == "interpreted" and torch.cuda.is_available():
        pytest.skip("triton compiles here")
    device = torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")
    why = dispatch.reason("triton", device)
    if why is not None:
        pytest.skip(why)
    return device


def weights(model):
    """Return the model's state as one vector."""
    return torch.cat([v.flatten() for v in model.state_dict().values()])


def torchrun(processes, *command):
    """Return the command that starts ``python *command`` in this number of processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, "--nproc-per-node", str(processes), *map(str, command)]


@pytest.fixture
def double_by_default():
    """Set torch's default dtype to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def rows_alike(monkeypatch):
    """Make Triton's interpreter multiply each row in the same way wherever it is in its block.

    GPUs do so; the interpreter calls BLAS, which on some processors sums the last rows of a block
    in another order.
    """

    def product(a, b, dtype=None):
        return np.einsum("ik,kj->ij", a, b, dtype=dtype)

    monkeypatch.setattr(np, "matmul", product)


@pytest.fixture(params=CPU_VARIANTS)
def variant(request):
    """Instruction set of the native kernels; the test runs with each one of this machine."""
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by playwright."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    options = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session", autouse=True)
def classifiers(tmp_path_factory):
    """Share one cache of classifiers among all tests and workers of a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["CDRL_FAST_CACHE"] = str(folder / "classifiers")


@pytest.fixture
def image_model():
    """Small class-conditional model of 8×8 grey images, with random weights."""
    torch.manual_seed(0)
    names = ("zero", "one", "two")
    energy = ResNetEnergy(1, 8, (1, 2), 1, classes=names)
    initializer = UNetInitializer(1, 8, 8, (1, 1), 1, (4,), 0.1, classes=names)
    return randomize(CDRL(energy, initializer, NoiseSchedule(steps=3)))


@pytest.fixture
def point_model():
    """Small unconditional model of 2-D points, with random weights."""
    torch.manual_seed(0)
    schedule = NoiseSchedule(steps=3, kappa=1e-3, step_scale="constant")
    return randomize(CDRL(MLPEnergy(2, 16, (1, 2)), MLPInitializer(2, 64, 32), schedule))
