"""Which room of an operation runs: the compiled kernels where they can, else the reference."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch

from cdrl_fast._extension import load
from cdrl_fast._extension import reason as why_not_native
from cdrl_fast.errors import BackendUnavailable

BACKENDS = ("native", "cuda", "triton", "reference")
CPU_BACKENDS = ("native", "reference")
"""The rooms of an operation whose kernels are for CPUs alone."""
TRITON_BACKENDS = ("triton", "reference")
"""The rooms of an operation whose kernels are in Triton alone."""
NON_CUDA_BACKENDS = ("native", "triton", "reference")
"""Those of an operation that has no kernel in CUDA C++."""
CONVOLUTION_BACKENDS = ("triton", "cudnn", "reference")
"""Those of a convolution that the library's own has to beat."""
# In order of preference. Of the two rooms for GPUs the one that needs no compiler at run time comes
# first, until they have been measured against each other.
_AUTO = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}
_OLDEST_CAPABILITY = 80


@cache
def reason(backend: str, device: torch.device) -> str | None:
    """Why ``room`` cannot work on ``device``; None where it can."""
    if backend == "reference":
        return None
    tests = {
        "native": _why_not_native,
        "cuda": _why_not_cuda,
        "triton": _why_not_triton,
        "cudnn": _why_not_cudnn,
    }
    return tests[backend](device)


def automatic(device: torch.device, having: tuple[str, ...] = BACKENDS) -> str:
    """The room that "auto" takes on ``device``, of those that an operation has."""
    backends = _AUTO.get(device.type, ("reference",))
    return next(
        backend for backend in backends if backend in having and reason(backend, device) is None
    )


def choose(
    where: str,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    having: tuple[str, ...] = BACKENDS,
) -> str:
    """The room for a call, of those that an operation has.

    Raises:
        ValueError: an unknown backend. BackendUnavailable: an explicit one that cannot be had.
    """
    known = tuple(dict.fromkeys(("auto", *BACKENDS, *having)))
    if backend not in known:
        raise ValueError(f"{where}: backend must be one of {known}, got {backend!r}")
    if dtype == torch.float64:
        if backend not in ("auto", "reference"):
            raise BackendUnavailable(
                f'{where}: backend="{backend}" computes in float32; float64 has "reference" alone'
            )
        return "reference"
    if backend == "auto":
        return automatic(device, having)
    why = reason(backend, device)
    if why is not None:
        raise BackendUnavailable(f'{where}: backend="{backend}" is not available: {why}')
    if backend not in having:
        raise BackendUnavailable(f'{where}: backend="{backend}" has no kernel of it; use "auto"')
    return backend


def _why_not_native(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it works on CPUs, not on {device.type}"
    return why_not_native()


def _why_not_cuda(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it works on CUDA devices, not on {device.type}"
    module = load()
    if module is None:
        return why_not_native()
    if not hasattr(module, "langevin_step_cuda"):
        return "the compiled module was built without CUDA kernels (no nvcc, or CDRL_CUDA=OFF)"
    needs, has = module.cuda_runtime_version() // 1000, module.cuda_driver_version() // 1000
    if has < needs:
        return (
            f"its CUDA {needs} runtime needs a driver for CUDA {needs}, and this machine's is for "
            f"CUDA {has}: update the driver (CUDA 13 needs 580 or later)"
        )
    capability = compute_capability(device)
    if not serves(module.cuda_architectures, capability):
        return (
            f"it was built for architectures {module.cuda_architectures}, and {device} has "
            f"{capability}: install again with CDRL_CUDA_ARCHS={capability}"
        )
    return None


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        capability = compute_capability(device)
        if capability < _OLDEST_CAPABILITY:
            return (
                f"it needs capability {_OLDEST_CAPABILITY} or later, and {device} has {capability}"
            )
        return None
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return (
        f"it works on CUDA devices, not on {device.type} (TRITON_INTERPRET=1 runs its kernels on "
        "CPUs, slowly)"
    )


def _why_not_cudnn(device: torch.device) -> str | None:
    why = _why_not_triton(device)
    if why is not None:
        return f"what follows the convolution is in Triton: {why}"
    library: Any = torch.backends.cudnn
    if device.type == "cuda" and not library.is_available():
        return "this torch has no cuDNN"
    return None


def compute_capability(device: torch.device) -> int:
    """90 for 9.0, of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def serves(architectures: str, capability: int) -> bool:
    """Whether code built for ``architectures`` ("80,90") runs on a device of this capability.

    Machine code serves its own major version from its own minor version on; the last architecture
    is also there as PTX, which the driver compiles for any later one.
    """
    built = [int(name.rstrip("af")) for name in architectures.split(",")]
    exact = any(a <= capability and a // 10 == capability // 10 for a in built)
    return exact or built[-1] <= capability
