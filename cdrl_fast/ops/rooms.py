"""Which room of an operation runs: the compiled kernels where they can, else the reference."""

from __future__ import annotations

from functools import cache

import torch

from cdrl_fast._native import reason as why_not_native
from cdrl_fast.errors import BackendUnavailable

ROOMS = ("native", "reference")
"""Rooms in order of preference."""


@cache
def reason(room: str, device_type: str) -> str | None:
    """Why ``room`` cannot work on a device of this type; None where it can."""
    if room == "reference":
        return None
    if device_type != "cpu":
        return f"it works on CPUs, and the tensors are on {device_type}"
    return why_not_native()


def choose(where: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The room for a call.

    Raises:
        ValueError: an unknown backend. BackendUnavailable: an explicit one that cannot be had.
    """
    if backend != "auto" and backend not in ROOMS:
        raise ValueError(f"{where}: backend must be one of {('auto', *ROOMS)}, got {backend!r}")
    if dtype == torch.float64:
        if backend not in ("auto", "reference"):
            raise BackendUnavailable(
                f'{where}: backend="{backend}" computes in float32; float64 has "reference" alone'
            )
        return "reference"
    if backend == "auto":
        return next(room for room in ROOMS if reason(room, device.type) is None)
    why = reason(backend, device.type)
    if why is not None:
        raise BackendUnavailable(f'{where}: backend="{backend}" is not available: {why}')
    return backend
