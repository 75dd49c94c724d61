"""What the library runs on here: versions, devices, and the backend of each operation."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field

import torch

from cdrl_fast._extension import load
from cdrl_fast.ops.dispatch import (
    BACKENDS,
    CONVOLUTION_BACKENDS,
    CPU_BACKENDS,
    NON_CUDA_BACKENDS,
    TRITON_BACKENDS,
    automatic,
    reason,
)

OPERATIONS = {
    "normal": BACKENDS,
    "langevin_step": BACKENDS,
    "energy_gradient": CPU_BACKENDS,
    "mlp_chain": NON_CUDA_BACKENDS,
    "unet_forward": CPU_BACKENDS,
    "conv3x3": CONVOLUTION_BACKENDS,
    "stem": TRITON_BACKENDS,
    "pool": TRITON_BACKENDS,
    "head": TRITON_BACKENDS,
    "stem_gradient": TRITON_BACKENDS,
    "norm_silu": TRITON_BACKENDS,
    "train_conv3x3": CPU_BACKENDS,
    "train_norm_silu": CPU_BACKENDS,
}
"""The rooms that each operation has."""
_PACKAGES = ("cdrl-fast", "torch", "triton", "numpy")


@dataclass(frozen=True)
class About:
    """What `about` found; prints as a table.

    Attributes:
        versions: of Python and packages; None where a package is absent.
        native: what the compiled module was built with; empty where there is none.
        devices: name of each device by its torch name.
        backends: by device and operation, each backend with the reason it cannot be used, None if it can.
        used: by device and operation, the backend that backend="auto" takes.

    Examples:
        >>> from cdrl_fast import about
        >>> sorted(about().versions)
        ['cdrl-fast', 'numpy', 'python', 'torch', 'triton']
    """

    versions: dict[str, str | None]
    native: dict[str, str]
    devices: dict[str, str]
    backends: dict[str, dict[str, dict[str, str | None]]] = field(repr=False)
    used: dict[str, dict[str, str]]

    def __str__(self) -> str:
        lines = [
            f"{name:12} {version or 'not installed'}" for name, version in self.versions.items()
        ]
        lines += [f"{name:12} {value}" for name, value in self.native.items()]
        for device, title in self.devices.items():
            lines += ["", f"{device}: {title}"]
            for operation, backends in self.backends[device].items():
                used = self.used[device][operation]
                lines.append(f"  {operation}: {used}")
                for backend, why in backends.items():
                    if backend != used:
                        lines.append(f"    not {backend}: {why or 'another comes first'}")
        return "\n".join(lines)


def about() -> About:
    """Versions, devices, and for each operation the backend it uses and why not the others.

    Returns:
        An `About`; print it to read it.

    Examples:
        >>> from cdrl_fast import about
        >>> about().used["cpu"]["langevin_step"] in ("native", "reference")
        True
    """
    devices = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        devices[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}"
    places = {name: torch.device(name) for name in devices}
    return About(
        versions={"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        native=_native(),
        devices=devices,
        backends={
            name: {
                op: {backend: reason(backend, place) for backend in having}
                for op, having in OPERATIONS.items()
            }
            for name, place in places.items()
        },
        used={
            name: {op: automatic(place, having) for op, having in OPERATIONS.items()}
            for name, place in places.items()
        },
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, str]:
    module = load()
    if module is None:
        return {}
    built = {"c++": f"{module.cpu_variant()} of {', '.join(module.cpu_variants())}"}
    if hasattr(module, "cuda_architectures"):
        runtime, driver = module.cuda_runtime_version(), module.cuda_driver_version()
        built["cuda c++"] = (
            f"architectures {module.cuda_architectures}, runtime {_dotted(runtime)}, driver "
            f"{_dotted(driver) if driver else 'none'}"
        )
    return built


def _dotted(version: int) -> str:
    """13020 is CUDA 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"
