"""Options and result lines of the benchmarks: `pytest benchmarks/ --benchmark-only`."""

from __future__ import annotations

import datetime
import json
import platform
import sys
import tomllib
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "gpu")]

import race  # noqa: E402
from revision import commit  # noqa: E402

from cdrl_fast import __version__, about  # noqa: E402
from cdrl_fast._extension import load, reason  # noqa: E402


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds per test; no effect without pytest-timeout")
    group = parser.getgroup("cdrl_fast")
    group.addoption("--paper", action="store_true", help="time the paper's sizes too")
    group.addoption("--rounds", type=int, default=11, help="timed rounds per contender")
    group.addoption(
        "--results",
        type=Path,
        default=HERE / "results" / "benchmarks.jsonl",
        help="file to which results are appended",
    )
    group.addoption("--commit", help="recorded as the commit; by default git's")


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture(scope="session")
def joules(device):
    """Return a function that reads the GPU's energy counter in joules, or None without one."""
    if device.type != "cuda":
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def pytest_configure(config):
    _warn_of_another_version(config)
    race.CHECK_ONLY = config.getoption("benchmark_disable", False)
    if race.CHECK_ONLY:  # compiling takes half a minute per network and does not change the results
        torch.compiler.set_stance("force_eager")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--paper"):
        return
    skip = pytest.mark.skip(reason="the paper's sizes: --paper")
    for item in items:
        if "paper" in item.keywords:
            item.add_marker(skip)


def _warn_of_another_version(config):
    """Warn if the installed package, which is timed, has another version than these sources."""
    sources = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
    if __version__ != sources:
        message = (
            f"these benchmarks are of cdrl-fast {sources} and time the installed {__version__}; "
            f"run `pip install .` in {HERE.parent} first"
        )
        config.issue_config_time_warning(pytest.PytestWarning(message), stacklevel=2)


def _timed(config):
    """Return the benchmarks that have times; with --benchmark-disable there are none."""
    benches = getattr(config, "_benchmarksession", None)
    return [b for b in getattr(benches, "benchmarks", []) if b.stats.data]


def pytest_terminal_summary(terminalreporter, config):
    """Print why the results of a run in pure Python are not appended."""
    if _timed(config) and load() is None:
        path = config.getoption("--results")
        terminalreporter.write_line(
            f"nothing appended to {path}: cdrl_fast ran in pure Python: {reason()}"
        )


def pytest_sessionfinish(session):
    """Append one line per run: the environment and each contender's times.

    Runs in pure Python are not recorded.
    """
    timed = _timed(session.config)
    if not timed or load() is None:
        return
    environment = about()
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(session.config.getoption("--commit")),
        "versions": environment.versions,
        "devices": environment.devices,
        "used": environment.used,
        "processor": _processor(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "peak_gflops": _peak(),
        "rows": [
            {
                "group": bench.group,
                "median": bench.stats.median,
                "iqr": bench.stats.iqr,
                "least": bench.stats.min,
                "rounds": bench.stats.rounds,
                **bench.extra_info,
            }
            for bench in timed
        ],
    }
    path = session.config.getoption("--results")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _peak():
    """Return the GFLOP/s that the CPU's threads reach in products of matrices, by precision."""
    module = load()
    threads = torch.get_num_threads()
    is_half = {"fp32": False, "bf16": True}
    return {name: module.peak_flops(half, threads) / 1e9 for name, half in is_half.items()}


def _processor():
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
