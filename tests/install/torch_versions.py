"""Build and test the library with the oldest torch that it supports, and with the newest release.

    python tests/install/torch_versions.py --out benchmarks/results/torch-versions.json
    python tests/install/torch_versions.py --only newest --out RESULTS

The oldest torch and triton are the lower bounds in pyproject.toml; the newest torch is the latest
release that pip installs. Each gets a new environment in build/torch-versions (several gigabytes:
PyPI's torch includes CUDA), where the library is installed and the tests of kernels, sampler,
densities and training run. ``--only`` keeps the other's entry in the results. Exits with 1 if a
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
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/ops", "tests/sampling", "tests/model", "tests/networks", "tests/engine",
    "tests/training/test_step.py", "tests/training/test_trainer.py",
)  # fmt: skip
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist")
VERSIONS = ("oldest", "newest")


def requirements(version: str, text: str) -> list[str]:
    """Return the requirements of a version for pip, from the text of pyproject.toml."""
    if version == "newest":
        return ["torch"]
    bounds = re.findall(r'"(torch|triton)>=([0-9.]+)', text)
    # The interpreter of that triton fails with NumPy 2.4.
    return [*(f"{name}=={number}.0" for name, number in bounds), "numpy<2.4"]


def environment(folder: Path, needs: list[str]) -> Path:
    """Create an environment with the library and its requirements; return its Python."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # torch comes first, so that the library's requirements cannot choose another release.
    subprocess.run([*pip, *needs], check=True)
    subprocess.run([*pip, f"{ROOT}[demo]", *needs, *TOOLS], check=True)
    return python


def run_tests(python: Path, workers: str) -> tuple[dict[str, Any], bool]:
    """Run the tests against the installed library; return the record, and whether all passed."""
    command = [str(python), "-m", "pytest", "-n", workers, *TESTS]
    with tempfile.TemporaryDirectory() as tree:
        # The copy has no package, so that the installed one is tested.
        left_out = shutil.ignore_patterns(".*", "build", "cdrl_fast", "runs", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=left_out, dirs_exist_ok=True)
        threads = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tree, env=threads, capture_output=True, text=True)
        print(done.stdout[-4000:], done.stderr[-2000:])
        versions = subprocess.run(
            [str(python), "-c", "from cdrl_fast import about; print(about().versions)"],
            cwd=tree, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions.strip(),
        "tests": list(TESTS),
        **{name: int(count) for count, name in counts},
    }
    return record, done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=VERSIONS, help="by default both")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "torch-versions")
    parser.add_argument("--workers", default="auto", help="pytest's -n")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    text = (ROOT / "pyproject.toml").read_text()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    all_passed = []
    for version in [options.only] if options.only else VERSIONS:
        python = environment(options.environments / version, requirements(version, text))
        results[version], passed = run_tests(python, options.workers)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
        all_passed.append(passed)
    return int(not all(all_passed))


if __name__ == "__main__":
    sys.exit(main())
