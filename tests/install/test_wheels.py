"""Tests of the identifiers of the wheels that are built for publication."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = {f"cp3{n}-manylinux_{arch}" for n in (11, 12, 13) for arch in ("x86_64", "aarch64")}
CUDA = {f"cp3{n}-manylinux_x86_64" for n in (11, 12, 13)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--archs", "x86_64,aarch64"], CPU),
        (["--config-file", "wheels_cuda.toml"], CUDA),
    ],
    ids=["cpu", "cuda"],
)
def test_identifiers(options, expected):
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    command += ["--platform", "linux", *options, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected
