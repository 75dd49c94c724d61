"""Versions, devices and the backends of each operation on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import platform
from dataclasses import dataclass, field

import torch

from cdrl_fast import ops
from cdrl_fast._extension import load
from cdrl_fast.ops.dispatch import automatic, reason

_PACKAGES = ("cdrl-fast", "torch", "triton", "numpy")


@dataclass(frozen=True)
class About:
    """Report of `about`; `print` shows it as a table.

    Attributes:
        versions: version of Python and of each package; None if a package is not installed.
        native: instruction sets and CUDA architectures of the compiled module; empty without one.
        devices: name of the hardware, by torch device.
        backends: by device and operation, each backend with the reason why it cannot be used, or
            None if it can.
        used: by device and operation, the backend that ``backend="auto"`` selects.

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
                        lines.append(f"    not {backend}: {why or f'{used} is preferred'}")
        return "\n".join(lines)


def about() -> About:
    """Return versions, devices and, for each operation, its backends and the one in use.

    Returns:
        An `About`, which prints as a table.

    Examples:
        >>> from cdrl_fast import about
        >>> about().used["cpu"]["langevin_step"] in ("native", "reference")
        True
    """
    devices = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        devices[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}"
    operations = _operations()
    torch_devices = {name: torch.device(name) for name in devices}
    return About(
        versions={"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        native=_native(),
        devices=devices,
        backends={
            name: {
                op: {backend: reason(backend, device) for backend in available}
                for op, available in operations.items()
            }
            for name, device in torch_devices.items()
        },
        used={
            name: {op: automatic(device, available) for op, available in operations.items()}
            for name, device in torch_devices.items()
        },
    )


def _operations() -> dict[str, tuple[str, ...]]:
    """Return the backends of each operation, which are its package's ``BACKENDS``."""
    names = [module.name for module in pkgutil.iter_modules(ops.__path__) if module.ispkg]
    return {name: importlib.import_module(f"{ops.__name__}.{name}").BACKENDS for name in names}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, str]:
    module = load()
    if module is None:
        return {}
    build = {"c++": f"{module.cpu_variant()} of {', '.join(module.cpu_variants())}"}
    if hasattr(module, "cuda_architectures"):
        runtime, driver = module.cuda_runtime_version(), module.cuda_driver_version()
        build["cuda c++"] = (
            f"architectures {module.cuda_architectures}, runtime {_dotted(runtime)}, driver "
            f"{_dotted(driver) if driver else 'none'}"
        )
    return build


def _dotted(version: int) -> str:
    """Return a CUDA version as text: 13020 is "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"
