"""Choice of an operation's backend: compiled kernels where available, else the reference."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cdrl_fast._extension import load, module, why_without_cuda
from cdrl_fast._extension import reason as why_not_native
from cdrl_fast.errors import BackendUnavailable

# In order of preference; "cuda" precedes "triton" because it needs no compiler at run time, and no
# benchmark has compared the two yet.
_AUTO = {"cpu": ("native",), "cuda": ("cuda", "triton")}
_OLDEST_CAPABILITY = 80


@cache
def reason(backend: str, device: torch.device) -> str | None:
    """Return the reason why ``backend`` cannot be used on ``device``, or None if it can."""
    return _REASONS[backend](device)


def automatic(device: torch.device, available: tuple[str, ...]) -> str:
    """Return the backend that "auto" selects on ``device`` among an operation's backends."""
    preferred = _AUTO.get(device.type, ())
    for backend in preferred:
        if backend in available and reason(backend, device) is None:
            return backend
    return "reference"


def choose(
    operation: str,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    available: tuple[str, ...],
) -> str:
    """Return the backend for one call of an operation.

    Args:
        operation: name of the operation, for messages.
        backend: "auto" or the name of a backend.
        device, dtype: of the call's tensors; float64 runs on the reference.
        available: the operation's ``BACKENDS``.

    Raises:
        ValueError: an unknown backend.
        BackendUnavailable: an explicit backend that is not available.
    """
    if backend != "auto" and backend not in _REASONS:
        known = ("auto", *_REASONS)
        raise ValueError(f"{operation}: backend must be one of {known}, got {backend!r}")
    if dtype == torch.float64:
        if backend not in ("auto", "reference"):
            raise BackendUnavailable(
                f'{operation}: backend="{backend}" computes in float32, got float64 tensors; '
                'use "auto" or "reference"'
            )
        return "reference"
    if backend == "auto":
        return automatic(device, available)
    why = reason(backend, device)
    if why is not None:
        raise BackendUnavailable(f'{operation}: backend="{backend}" is not available: {why}')
    if backend not in available:
        raise BackendUnavailable(
            f'{operation}: backend="{backend}" has no kernel for this operation; use "auto"'
        )
    return backend


def compiled_kernel(operation: str, x: Tensor) -> tuple[Callable[..., None], tuple[int, ...]]:
    """Return the compiled function for x's device, and its arguments after the operation's own."""
    if x.is_cuda:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        return getattr(module(), f"{operation}_cuda"), (x.device.index, stream)
    return getattr(module(), f"{operation}_cpu"), (torch.get_num_threads(),)


def _native_reason(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it works on CPUs, not on {device.type}"
    return why_not_native()


def _cuda_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it works on CUDA devices, not on {device.type}"
    compiled = load()
    if compiled is None:
        return why_not_native()
    if not hasattr(compiled, "langevin_step_cuda"):
        return f"the compiled module was built without CUDA kernels {why_without_cuda()}"
    runtime, driver = (
        compiled.cuda_runtime_version() // 1000,
        compiled.cuda_driver_version() // 1000,
    )
    if driver < runtime:
        return (
            f"its CUDA {runtime} runtime needs a driver for CUDA {runtime}, and this machine's is "
            f"for CUDA {driver}: update the driver (CUDA 13 needs 580 or later)"
        )
    capability = compute_capability(device)
    if not serves(compiled.cuda_architectures, capability):
        return (
            f"it was built for architectures {compiled.cuda_architectures}, and {device} has "
            f"{capability}: install again with CDRL_CUDA_ARCHS={capability}"
        )
    return None


def _triton_reason(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are for NVIDIA's GPUs; this torch is built for ROCm"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "triton needs a C compiler: install gcc or clang, or set CC"
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


def _cudnn_reason(device: torch.device) -> str | None:
    why = _triton_reason(device)
    if why is not None:
        return f"the kernel that follows the convolution is in Triton: {why}"
    library: Any = torch.backends.cudnn
    if device.type == "cuda" and not library.is_available():
        return "this torch has no cuDNN"
    return None


_REASONS: dict[str, Callable[[torch.device], str | None]] = {
    "native": _native_reason,
    "cuda": _cuda_reason,
    "triton": _triton_reason,
    "cudnn": _cudnn_reason,
    "reference": lambda device: None,
}
"""By backend, a function of the device that returns the reason why it cannot be used, or None."""


def compute_capability(device: torch.device) -> int:
    """Return the compute capability of a CUDA device as an integer: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def serves(architectures: str, capability: int) -> bool:
    """Return whether code built for ``architectures`` ("80,90") runs on this capability.

    Machine code runs on later minor versions of its own major version. The last architecture is
    also stored as PTX, which the driver compiles for any later capability.
    """
    numbers = [int(name.rstrip("af")) for name in architectures.split(",")]
    exact = any(a <= capability and a // 10 == capability // 10 for a in numbers)
    return exact or numbers[-1] <= capability
