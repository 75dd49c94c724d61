"""Which plan an energy gets, and in which precision it computes."""

from __future__ import annotations

import torch
from torch import nn

from cdrl_fast.engine.autograd import AutogradEnergy
from cdrl_fast.engine.energy import CpuImageEnergy, GpuImageEnergy, PointEnergy
from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.ops.dispatch import TRITON_BACKENDS, automatic
from cdrl_fast.precision import GPU_PRECISIONS, Precision, resolve

Plan = CpuImageEnergy | GpuImageEnergy | PointEnergy | AutogradEnergy


def frozen_energy(
    network: nn.Module,
    *,
    device: torch.device,
    precision: Precision,
    backend: str = "auto",
    compile: bool = False,
) -> Plan:
    """The fastest plan that a network has: without autograd for the library's own networks.

    ``compile`` is for the others: ``torch.compile``. A subclass of ours may compute something else.

    Raises:
        BackendUnavailable: a precision or room that cannot be had.
    """
    if type(network) is ResNetEnergy and uses_gpu_passes(device, precision, backend):
        return GpuImageEnergy(network, device=device, precision=precision, backend=backend)
    if precision.name in GPU_PRECISIONS:
        raise BackendUnavailable(
            f"precision={precision.name!r} is for the library's own energies of images on GPUs"
        )
    if type(network) is ResNetEnergy:
        return CpuImageEnergy(network, device=device, precision=precision, backend=backend)
    if type(network) is MLPEnergy:
        return PointEnergy(network, device=device, precision=precision, backend=backend)
    return AutogradEnergy(network, device=device, precision=precision, compile=compile)


def uses_gpu_passes(device: torch.device, precision: Precision, backend: str) -> bool:
    """Whether the operations for GPUs compute the gradient; float64 has one reference for all."""
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
    """The precision that a name stands for in an energy's chain; see `resolve`.

    Args:
        name: "auto", "fp32", ….
        backend: the room that was asked for.
        state: the dtype that the chain's state has already, or None where the name decides.

    Raises:
        ValueError: an unknown name, or one whose state has another dtype than ``state``.
        BackendUnavailable: a precision that cannot be had.
    """
    double = state == torch.float64
    native = backend in ("auto", "native") and automatic(device) == "native"
    # A subclass of ours may compute something else.
    planned = native and type(energy) in (ResNetEnergy, MLPEnergy)
    if name == "auto" and double:
        name = "fp64"
    precision = resolve(name, device, planned=planned)
    if state is not None and double != (precision.state == torch.float64):
        raise ValueError(
            f'precision: a chain of {state} cannot be "{name}"; use "auto", or the model in '
            f"{precision.state}"
        )
    return precision
