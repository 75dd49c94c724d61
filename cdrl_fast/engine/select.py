"""Choice of the frozen energy that a network gets, and of the precision in which it computes."""

from __future__ import annotations

import torch
from torch import nn

from cdrl_fast.engine.autograd import AutogradEnergy
from cdrl_fast.engine.energy import CpuImageEnergy, GpuImageEnergy, PointEnergy
from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.ops.dispatch import automatic
from cdrl_fast.ops.energy_gradient import BACKENDS as CPU_BACKENDS
from cdrl_fast.ops.stem_gradient import BACKENDS as TRITON_BACKENDS
from cdrl_fast.precision import GPU_PRECISIONS, Precision, resolve

FrozenEnergy = CpuImageEnergy | GpuImageEnergy | PointEnergy | AutogradEnergy


def frozen_energy(
    network: nn.Module,
    *,
    device: torch.device,
    precision: Precision,
    backend: str = "auto",
    compile: bool = False,
) -> FrozenEnergy:
    """Return the fastest frozen energy for a network.

    The library's own networks get one without autograd. All others, subclasses included because
    they may compute something else, get an `AutogradEnergy`.

    Args:
        network: copied, never modified.
        device, precision: where and how the copy computes.
        backend: of the library's own networks.
        compile: whether the other networks go through ``torch.compile``.

    Raises:
        BackendUnavailable: the precision or the backend is not available.
    """
    if type(network) is ResNetEnergy and uses_gpu_passes(device, precision, backend):
        return GpuImageEnergy(network, device=device, precision=precision, backend=backend)
    if precision.name in GPU_PRECISIONS:
        raise BackendUnavailable(
            f"precision={precision.name!r} needs a GPU and the library's own energy network for "
            f"images, got a {type(network).__name__} on {device}; use precision='auto'"
        )
    if type(network) is ResNetEnergy:
        return CpuImageEnergy(network, device=device, precision=precision, backend=backend)
    if type(network) is MLPEnergy:
        return PointEnergy(network, device=device, precision=precision, backend=backend)
    return AutogradEnergy(network, device=device, precision=precision, compile=compile)


def uses_gpu_passes(device: torch.device, precision: Precision, backend: str) -> bool:
    """Return whether the operations for GPUs compute; in float64 the reference always does."""
    if precision.state == torch.float64:
        return False
    on_gpu = backend == "auto" and device.type == "cuda"
    return backend == "triton" or (on_gpu and automatic(device, TRITON_BACKENDS) == "triton")


def chain_precision(
    name: str,
    energy: nn.Module,
    device: torch.device,
    *,
    backend: str = "auto",
    state: torch.dtype | None = None,
) -> Precision:
    """Return the precision that a name stands for in an energy's chain; see `resolve`.

    Args:
        name: "auto", "fp32", ….
        energy: the energy network.
        device: where the chain runs.
        backend: as the user names it.
        state: dtype of an existing chain's state, or None if the name decides.

    Raises:
        ValueError: the name is unknown, or its state has another dtype than ``state``.
    """
    double = state == torch.float64
    native = backend in ("auto", "native") and automatic(device, CPU_BACKENDS) == "native"
    # A subclass may compute something else.
    has_kernels = native and type(energy) in (ResNetEnergy, MLPEnergy)
    if name == "auto" and double:
        name = "fp64"
    precision = resolve(name, device, has_kernels=has_kernels)
    if state is not None and double != (precision.state == torch.float64):
        raise ValueError(
            f'precision: a chain of {state} cannot be "{name}"; use "auto", or the model in '
            f"{precision.state}"
        )
    return precision
