"""What the machine is, and its two ceilings: copy bandwidth and matrix rate."""

from __future__ import annotations

import datetime
import math
import platform
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from baseline.bench import Bench, Figure
from baseline.revision import commit
from baseline.timing import DTYPES, measure, numerics

KINDS = ("fp16", "bf16", "tf32", "fp32")
MOST_SETS = 2048


def environment(bench: Bench, given_commit: str | None = None) -> None:
    """Versions and device; not figures, so they stand beside the sections."""
    found: Figure = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(given_commit),
        "argv": sys.argv,
        "deadline": bench.deadline,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda_runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cpu_threads": torch.get_num_threads(),
        "device": str(bench.device),
        "plan": asdict(bench.plan),
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {
            "device_name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": bench.l2_bytes,
            "memory_bytes": properties.total_memory,
        }
    found["management_library"] = clocks(bench, limits=True)
    bench.report.data["environment"] = found
    bench.report.section("environment")["figures"]["l2"] = {"bytes": bench.l2_bytes}


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None


def clocks(bench: Bench, limits: bool = False) -> dict[str, Any]:
    """Clocks, power and temperature now, read through NVIDIA's management library where present."""
    if bench.device.type != "cuda":
        return {"unavailable": "no CUDA device"}
    try:
        import pynvml as nvml
    except ImportError:
        return {"unavailable": "nvidia-ml-py is not installed"}
    try:
        nvml.nvmlInit()
        handle = handle_of(nvml, bench.device)
    except nvml.NVMLError as error:
        return {"unavailable": str(error)}
    reads = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    if limits:
        reads |= {
            "driver": nvml.nvmlSystemGetDriverVersion,
            "sm_mhz_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        }
    return {name: _read(nvml, read) for name, read in reads.items()}


def handle_of(nvml: Any, device: torch.device) -> Any:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (nvml.NVMLError, TypeError):
        return nvml.nvmlDeviceGetHandleByIndex(device.index or 0)


def _read(nvml: Any, read: Any) -> Any:
    try:
        value = read()
    except (nvml.NVMLError, AttributeError) as error:
        return f"unavailable: {error}"
    return value.decode() if isinstance(value, bytes) else value


def size_name(count: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:g} {unit}"
    return f"{count} B"


def copies(bench: Bench) -> None:
    """Device-to-device copies by size: out of cache, and where they fit within the L2 cache."""
    for size in bench.plan.copy_bytes:
        sets = max(1, min(MOST_SETS, math.ceil(4 * bench.l2_bytes / (2 * size))))
        name = size_name(size)
        cold = bench.item(f"{name} cold", partial(_copy, bench, size, sets))
        if cold and size >= bench.l2_bytes // 4:
            bench.copy_rate = max(bench.copy_rate or 0.0, cold["bytes_per_second"])
        if 2 * size <= bench.l2_bytes:
            bench.item(f"{name} in L2", partial(_copy, bench, size, 1))


def _copy(bench: Bench, size: int, sets: int) -> Figure:
    source = torch.randn(sets, size // 4, device=bench.device)
    target = torch.full_like(source, math.nan)
    pairs = list(zip(target.unbind(), source.unbind(), strict=True))
    timing = measure(lambda i: _copy_one(pairs[i % sets]), bench.device, rounds=sets)
    if not torch.equal(target[0], source[0]):
        raise AssertionError("the copy differs from its source")
    moved = 2 * size
    return timing.figure(
        bytes=moved, bytes_per_second=moved / timing.seconds, footprint_bytes=moved * sets
    )


def _copy_one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    pair[0].copy_(pair[1])


def matmuls(bench: Bench) -> None:
    """Square matrix products in each precision; the best of each is its ceiling."""
    for size in bench.plan.matmul:
        for kind in KINDS:
            figure = bench.item(f"{kind} {size}", partial(_matmul, bench, kind, size))
            if figure:
                rate = figure["flops_per_second"]
                bench.rates[kind] = max(bench.rates.get(kind, 0.0), rate)
    largest, seconds = max(bench.plan.matmul), bench.plan.sustained_seconds
    for kind in KINDS[:-1]:
        run = partial(_matmul, bench, kind, largest, seconds, 5000)
        bench.item(f"{kind} {largest} sustained", run, need=seconds + 0.5)
    bench.report.data["ceilings"] = {
        "matmul_flops_per_second": dict(bench.rates),
        "copy_bytes_per_second": bench.copy_rate,
    }


def _matmul(bench: Bench, kind: str, size: int, seconds: float = 0.15, at_most: int = 50) -> Figure:
    dtype, device = DTYPES[kind], bench.device
    a, b = (torch.randn(2, size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.full((size, size), math.nan, device=device, dtype=dtype)
    with numerics("tf32" if kind == "tf32" else "fp32"):
        timing = measure(
            lambda i: torch.mm(a[i % 2], b[i % 2], out=out),
            device,
            seconds=seconds,
            at_most=at_most,
            rounds=2,
        )
        torch.mm(a[0], b[0], out=out)
    # Also the proof that the setting took hold: tf32 errs near 3e-4, float32 under 1e-6.
    exact = a[0, :16].double() @ b[0].double()
    error = (out[:16].double() - exact).norm() / exact.norm()
    if not error < 0.02:
        raise AssertionError(f"relative error {float(error):.2e} of a {kind} product")
    flops = 2 * size**3
    return timing.figure(
        flops=flops, flops_per_second=flops / timing.seconds, relative_error=float(error)
    )
