"""Options and results of the benchmarks: `pytest benchmarks/ --benchmark-only`."""

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
        parser.addini("timeout", "seconds per test; of no effect without pytest-timeout")
    group = parser.getgroup("cdrl_fast")
    group.addoption("--paper", action="store_true", help="the paper's sizes as well")
    group.addoption("--rounds", type=int, default=11, help="timed rounds of each contender")
    group.addoption(
        "--results",
        type=Path,
        default=HERE / "results" / "benchmarks.jsonl",
        help="file that results are appended to",
    )
    group.addoption("--commit", help="recorded as the commit; by default git is asked")


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def rounds(request):
    return request.config.getoption("--rounds")


@pytest.fixture(scope="session")
def joules(device):
    """Reads the energy that the GPU has used so far; None where it cannot be read."""
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
    race.CHECKED_ALONE = config.getoption("benchmark_disable", False)
    if race.CHECKED_ALONE:  # what torch compiles computes the same, half a minute a network sooner
        torch.compiler.set_stance("force_eager")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--paper"):
        return
    skip = pytest.mark.skip(reason="the paper's sizes: --paper")
    for item in items:
        if "paper" in item.keywords:
            item.add_marker(skip)


def _warn_of_another_version(config):
    """Warn where the package that will be timed is not of the version of this folder's sources."""
    sources = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
    if __version__ != sources:
        message = (
            f"these benchmarks are of cdrl-fast {sources} and time the installed {__version__}; "
            f"run `pip install .` in {HERE.parent}"
        )
        config.issue_config_time_warning(pytest.PytestWarning(message), stacklevel=2)


def _timed(config):
    """The benchmarks that have times; none with --benchmark-disable."""
    benches = getattr(config, "_benchmarksession", None)
    return [b for b in getattr(benches, "benchmarks", []) if b.stats.data]


def pytest_terminal_summary(terminalreporter, config):
    """Says why a run's figures were not appended to the results."""
    if _timed(config) and load() is None:
        path = config.getoption("--results")
        terminalreporter.write_line(
            f"nothing appended to {path}: cdrl_fast ran in pure Python: {reason()}"
        )


def pytest_sessionfinish(session):
    """Appends one line a run, unless in pure Python: where it ran, and each contender's figures."""
    timed = _timed(session.config)
    if not timed or load() is None:
        return
    found = about()
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(session.config.getoption("--commit")),
        "versions": found.versions,
        "devices": found.devices,
        "used": found.used,
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
    """What the CPU's threads reach in the inner loop of matrix products, by precision."""
    module = load()
    threads = torch.get_num_threads()
    names = {"fp32": False, "bf16": True}
    return {name: module.peak_flops(half, threads) / 1e9 for name, half in names.items()}


def _processor():
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
