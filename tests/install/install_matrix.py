"""Install the library with and without compilers, and use each installation.

    python tests/install/install_matrix.py

Each case has its own copy of the tree, its own wheel built in isolation, and its own environment,
which contains the packages of the environment that runs this, but not the library. Prints
`cdrl_fast.about()` of each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = (".*", "build", "demo", "runs", "*.so", "_build.json", "*.egg-info", "__pycache__")
COMPILERS = ("CC", "CXX", "CUDACXX", "CUDA_PATH", "CUDA_HOME")


# Commands that build a wheel: directly from the tree, or by way of its source distribution.
OF_TREE = ("pip", "wheel", "--no-deps", "--wheel-dir", ".", "./tree")
OF_SDIST = ("build", "--outdir", ".", "./tree")


def build_wheel(work: Path, build: tuple[str, ...] = OF_TREE, **environment: str) -> Path | str:
    """Build the wheel of a new copy of the tree; return its path, or the output if that failed."""
    work.mkdir()
    shutil.copytree(ROOT, work / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    command = [sys.executable, "-m", *build]
    done = subprocess.run(
        command, cwd=work, env=os.environ | environment, capture_output=True, text=True
    )
    return next(work.glob("*.whl"), done.stdout + done.stderr)


def without_compiler(work: Path) -> dict[str, str]:
    """Return environment variables whose PATH has no compiler."""
    work.mkdir()
    return {"PATH": str(work), **dict.fromkeys(COMPILERS, "/nonexistent")}


def install(work: Path, wheel: Path, without: tuple[str, ...] = ()) -> Path:
    """Install the wheel in a new environment with all packages but some; return its Python."""
    venv.create(work, with_pip=True)
    packages = Path(sysconfig.get_paths()["purelib"])
    target = next(work.glob("lib/python*/site-packages"))
    for entry in packages.iterdir():
        skip = "cdrl_fast" in entry.name or entry.name.split("-")[0] in without
        if not skip and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    python = work / "bin" / "python"
    run(work, python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
    return python


def run(folder: Path, *command: str | Path) -> str:
    """Return the output of a command run outside the tree; exit if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def about(folder: Path, python: Path, *expected: str) -> None:
    """Print the library's `about`; exit if it does not contain the expected texts."""
    output = run(folder, python, "-c", "import cdrl_fast; print(cdrl_fast.about())")
    print(output, flush=True)
    for text in expected:
        if text not in output:
            raise SystemExit(f"expected {text!r} in the output of about()")


def samples(folder: Path, python: Path) -> None:
    """Draw samples with the installed command, and check that the package is the installed one."""
    run(folder, python.parent / "cdrl-fast", "sample", "--n", "2", "--steps", "1", "--out", "s.png")
    file = run(folder, python, "-c", "import cdrl_fast; print(cdrl_fast.__file__)")
    if str(python.parents[2]) not in file or not (folder / "s.png").stat().st_size:
        raise SystemExit(f"not the installed package: {file}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        print("== all compilers, by way of a source distribution", flush=True)
        wheel = build_wheel(work / "full", OF_SDIST)
        assert isinstance(wheel, Path), wheel
        python = install(work / "full" / "env", wheel)
        about(work, python, ": native\n")
        about(work / "full" / "tree", python, ": native\n")
        samples(work, python)
        shutil.copytree(ROOT / "tests", work / "tests")
        print(
            run(work, python, "-m", "pytest", "tests/ops", "-q", "-n", "auto", "-k", "not triton")
        )

        print("== no compiler, no triton", flush=True)
        wheel = build_wheel(work / "bare", **without_compiler(work / "empty"))
        assert isinstance(wheel, Path), wheel
        python = install(work / "bare" / "env", wheel, without=("triton",))
        about(work, python, ": reference\n", "could not be built when this was installed")
        about(work / "bare" / "tree", python, ": reference\n", "could not be built when this was")
        samples(work, python)

        print("== CDRL_NATIVE=OFF", flush=True)
        wheel = build_wheel(work / "off", CDRL_NATIVE="OFF")
        assert isinstance(wheel, Path), wheel
        python = install(work / "off" / "env", wheel)
        about(work, python, ": reference\n", "CDRL_NATIVE=OFF")
        samples(work, python)

        print("== CDRL_NATIVE=ON and no compiler: an error", flush=True)
        output = build_wheel(work / "on", CDRL_NATIVE="ON", PATH=str(work / "empty"))
        assert isinstance(output, str), "a wheel came out"
        assert "CDRL_NATIVE=ON: " in output, output
    print("== all cases passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
