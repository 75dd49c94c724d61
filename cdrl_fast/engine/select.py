"""Choice of the frozen copy that a network gets, and of the precision in which it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdrl_fast.engine.autograd import AutogradEnergy, FrozenNetwork
from cdrl_fast.engine.energy import CpuImageEnergy, GpuImageEnergy, PointEnergy
from cdrl_fast.engine.gpu import uses_gpu_passes
from cdrl_fast.engine.initializer import ImageInitializer, PointInitializer
from cdrl_fast.errors import BackendUnavailable
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.ops.dispatch import automatic
from cdrl_fast.ops.energy_gradient import BACKENDS
from cdrl_fast.ops.stem import MAX_IMAGE_CHANNELS
from cdrl_fast.precision import GPU_PRECISIONS, Precision, resolve

FrozenEnergy = CpuImageEnergy | GpuImageEnergy | PointEnergy | AutogradEnergy
FrozenInitializer = ImageInitializer | PointInitializer | FrozenNetwork

# Subclasses may compute something else, so types must be equal.
_ENERGIES: dict[type[nn.Module], tuple[Any, Any]] = {
    ResNetEnergy: (CpuImageEnergy, GpuImageEnergy),
    MLPEnergy: (PointEnergy, PointEnergy),
}
"""Frozen copies of the library's energies, without and with the operations for GPUs."""
_INITIALIZERS: dict[type[nn.Module], Any] = {
    UNetInitializer: ImageInitializer,
    MLPInitializer: PointInitializer,
}
"""Frozen copies of the library's initializers."""


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
    own = _ENERGIES.get(type(network))
    on_gpu = uses_gpu_passes(device, precision, backend)
    channels = getattr(network.stem, "in_channels", 1) if own else 1
    if channels > MAX_IMAGE_CHANNELS:
        if backend == "triton":
            raise BackendUnavailable(
                f'backend="triton" has kernels for images of 1 to {MAX_IMAGE_CHANNELS} channels, '
                f'the energy takes {channels}; use backend="auto"'
            )
        on_gpu = False
    if precision.name in GPU_PRECISIONS and not (own and own[on_gpu].supports_graph):
        raise BackendUnavailable(
            f"precision={precision.name!r} needs a GPU and the library's own energy network for "
            f"images, got a {type(network).__name__} on {device}; use precision='auto'"
        )
    if own is None:
        return AutogradEnergy(network, device=device, precision=precision, compile=compile)
    energy: FrozenEnergy = own[on_gpu](network, device=device, precision=precision, backend=backend)
    return energy


def frozen_initializer(
    network: nn.Module,
    *,
    device: torch.device,
    precision: Precision,
    backend: str = "auto",
    compile: bool = False,
) -> FrozenInitializer:
    """Return the fastest frozen copy of an initializer; arguments as `frozen_energy`."""
    own = _INITIALIZERS.get(type(network))
    if own is None:
        return FrozenNetwork(network, device=device, precision=precision, compile=compile)
    initializer: FrozenInitializer = own(
        network, device=device, precision=precision, backend=backend
    )
    return initializer


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
    native = backend in ("auto", "native") and automatic(device, BACKENDS) == "native"
    if name == "auto" and double:
        name = "fp64"
    precision = resolve(name, device, has_kernels=native and type(energy) in _ENERGIES)
    if state is not None and double != (precision.state == torch.float64):
        raise ValueError(
            f'precision: a chain of {state} cannot be "{name}"; use "auto", or the model in '
            f"{precision.state}"
        )
    return precision
