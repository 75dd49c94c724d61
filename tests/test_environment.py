"""The report on backends and devices, and the cost of the import."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import cdrl_fast
from cdrl_fast import _extension, about
from cdrl_fast.ops import dispatch
from cdrl_fast.ops.langevin_step import BACKENDS


def python(code, **environment):
    process = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=os.environ | environment
    )
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr, process.stderr
    return process.stdout


def test_every_backend_is_used_or_has_a_reason():
    report = about()
    cpu = report.backends["cpu"]
    folders = {p.parent.name for p in Path(cdrl_fast.ops.__file__).parent.glob("*/__init__.py")}
    assert set(cpu) == folders
    for operation, reasons in cpu.items():
        modules = {p.stem for p in (Path(cdrl_fast.ops.__file__).parent / operation).glob("*.py")}
        assert ("triton" in reasons) == ("triton_kernel" in modules)
        assert ("cudnn" in reasons) == ("cudnn" in modules)
        assert ("native" in reasons) == ("native" in modules)
        assert ("cuda" in reasons) == (operation in ("normal", "langevin_step"))
        native = "native" in reasons and _extension.load()
        assert report.used["cpu"][operation] == ("native" if native else "reference")
        assert reasons["reference"] is None
        assert "cuda" not in reasons or "works on CUDA devices" in reasons["cuda"]
    assert report.versions["torch"] == torch.__version__


def test_the_command_prints_it():
    printed = python(["-m", "cdrl_fast", "about"], TRITON_INTERPRET="0")
    assert "langevin_step: " in printed
    assert "not triton: it works on CUDA devices" in printed
    assert "TRITON_INTERPRET=1" in printed


@pytest.fixture
def cuda_module(monkeypatch):
    """Compiled module and device as on a machine with a GPU."""
    module = types.SimpleNamespace(
        langevin_step_cuda=None,
        cuda_architectures="80,90,100",
        cuda_runtime_version=lambda: 13000,
        cuda_driver_version=lambda: 13000,
    )
    monkeypatch.setattr(dispatch, "load", lambda: module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dispatch.reason.cache_clear()
    yield module
    dispatch.reason.cache_clear()


def reason_on_gpu(backend):
    return dispatch.reason(backend, torch.device("cuda", 0))


def test_reasons_on_gpus(cuda_module):
    assert reason_on_gpu("cuda") is None
    assert dispatch.automatic(torch.device("cuda", 0), BACKENDS) == "cuda"
    assert "works on CPUs" in reason_on_gpu("native")


def test_an_old_driver(cuda_module):
    cuda_module.cuda_driver_version = lambda: 12040
    assert "CUDA 13 runtime needs a driver for CUDA 13" in reason_on_gpu("cuda")
    assert "580" in reason_on_gpu("cuda")
    assert dispatch.automatic(torch.device("cuda", 0), BACKENDS) != "cuda"


def test_a_module_without_cuda(cuda_module):
    del cuda_module.langevin_step_cuda
    assert "built without CUDA kernels" in reason_on_gpu("cuda")


def test_a_device_it_was_not_built_for(cuda_module):
    cuda_module.cuda_architectures = "100"
    assert "CDRL_CUDA_ARCHS=90" in reason_on_gpu("cuda")


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80,90,100", 80, True),
        ("80,90,100", 89, True),
        ("80,90,100", 75, False),
        ("80,90,100", 103, True),
        ("80,90,100", 120, True),
        ("90", 80, False),
        ("80", 90, True),
        ("90a", 90, True),
    ],
)
def test_which_code_serves_which_device(architectures, capability, expected):
    assert dispatch.serves(architectures, capability) is expected


def test_without_the_compiled_module_the_reason_is_kept(monkeypatch):
    monkeypatch.setattr(dispatch, "why_not_native", lambda: "switched off")
    dispatch.reason.cache_clear()
    assert dispatch.automatic(torch.device("cpu"), BACKENDS) == "reference"
    with pytest.raises(cdrl_fast.BackendUnavailable, match="not available: switched off"):
        cdrl_fast.normal((2, 2), seed=0, draw=0, backend="native")
    dispatch.reason.cache_clear()


def test_import_costs_less_than_a_second_and_no_driver():
    """Check the time beyond torch's import; triton, CUDA and libcuda are not loaded."""
    code = """
import time, torch
start = time.process_time()
from cdrl_fast import *
seconds = time.process_time() - start
import sys
print(seconds < 1.0, "triton" in sys.modules, torch.cuda.is_initialized())
print("libcuda.so" in open("/proc/self/maps").read())
"""
    assert python(["-c", code]).split() == ["True", "False", "False", "False"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hip": "6.4"}, "this torch is built for ROCm"),
        ({"compilers": ()}, "needs a C compiler: install gcc or clang, or set CC"),
        ({"compilers": ("clang",)}, None),
        ({"compilers": (), "CC": "tcc"}, None),
        ({"capability": (7, 5)}, "needs capability 80 or later, and cuda:0 has 75"),
    ],
)
def test_what_triton_needs_of_a_gpus_machine(monkeypatch, change, why):
    pytest.importorskip("triton")
    compilers, capability = change.get("compilers", ("gcc",)), change.get("capability", (9, 0))
    monkeypatch.setattr(torch.version, "hip", change.get("hip"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(dispatch.shutil, "which", lambda n: n if n in compilers else None)
    monkeypatch.delenv("CC", raising=False)
    if "CC" in change:
        monkeypatch.setenv("CC", change["CC"])
    dispatch.reason.cache_clear()
    reason = dispatch.reason("triton", torch.device("cuda", 0))
    dispatch.reason.cache_clear()
    assert reason == why or why in reason
