"""Builds and tests the library with the oldest torch that it says it works with.

    python scripts/oldest_torch.py --out benchmarks/results/oldest-torch.json

Makes an environment of its own in build/oldest-torch (several gigabytes: PyPI's torch of that age
brings CUDA), installs the library there with the lower bounds of torch and triton in
pyproject.toml, and runs the tests of kernels, sampler, densities and training. Status 1 where a
test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/ops", "tests/test_sampler.py", "tests/test_dynamics.py", "tests/test_energies.py",
    "tests/test_networks.py", "tests/test_compile.py", "tests/test_iteration.py",
    "tests/test_trainer.py", "tests/test_inpainting.py", "tests/test_released.py",
)  # fmt: skip
# The interpreter of that triton fails with NumPy 2.4.
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "numpy<2.4")


def lower_bounds(text: str) -> list[str]:
    """torch==… and triton==… as of the lower bounds in pyproject.toml."""
    found = re.findall(r'"(torch|triton)>=([0-9.]+)', text)
    return [f"{name}=={version}.0" for name, version in found]


def environment(place: Path, pins: list[str]) -> Path:
    """Python of an environment with the library and those versions."""
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"{ROOT}[demo]", *pins, *TOOLS], check=True)
    return python


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "oldest-torch")
    parser.add_argument("--workers", default="auto", help="pytest's -n")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    pins = lower_bounds((ROOT / "pyproject.toml").read_text())
    python = environment(options.environment, pins)
    command = [str(python), "-m", "pytest", "-n", options.workers, *TESTS]
    with tempfile.TemporaryDirectory() as tree:
        # Without the package: the installed one is tested.
        left_out = shutil.ignore_patterns(".*", "build", "cdrl_fast", "runs", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=left_out, dirs_exist_ok=True)
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tree, env=threads, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-2000:])
    said = subprocess.run(
        [str(python), "-c", "from cdrl_fast import about; print(about().versions)"],
        cwd=options.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    found = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": said.strip(),
        "tests": list(TESTS),
        **{name: int(count) for count, name in counts},
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
