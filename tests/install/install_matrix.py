"""Installs the library in each way that a user's machine may ask for, and uses it there.

    python tests/install/install_matrix.py

Each way has its own copy of the tree, its own wheel built in isolation, and its own environment,
which sees the packages of the environment that runs this but not the library. What is shown for
each is what `cdrl_fast.about()` says there.
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


# How a wheel comes about: of the tree, or of the source distribution that is made of it.
OF_TREE = ("pip", "wheel", "--no-deps", "--wheel-dir", ".", "./tree")
OF_SDIST = ("build", "--outdir", ".", "./tree")


def built(work: Path, how: tuple[str, ...] = OF_TREE, **environment: str) -> Path | str:
    """The wheel of a fresh copy of the tree; the build's output where there is none."""
    work.mkdir()
    shutil.copytree(ROOT, work / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    command = [sys.executable, "-m", *how]
    done = subprocess.run(
        command, cwd=work, env=os.environ | environment, capture_output=True, text=True
    )
    return next(work.glob("*.whl"), done.stdout + done.stderr)


def without_compiler(work: Path) -> dict[str, str]:
    """An environment whose PATH has no compiler."""
    work.mkdir()
    return {"PATH": str(work), **dict.fromkeys(COMPILERS, "/nonexistent")}


def installed(work: Path, wheel: Path, without: tuple[str, ...] = ()) -> Path:
    """Python of a new environment with the wheel and the packages found here, but for some."""
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
    """Output of a command that must end well, run outside the tree."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def about(folder: Path, python: Path, *expected: str) -> None:
    """Prints what the library says there; fails where it does not say what is expected."""
    said = run(folder, python, "-c", "import cdrl_fast; print(cdrl_fast.about())")
    print(said, flush=True)
    for words in expected:
        if words not in said:
            raise SystemExit(f"expected {words!r} in what about() says")


def samples(folder: Path, python: Path) -> None:
    """Draws with the installed command; the package must be the installed one."""
    run(folder, python.parent / "cdrl-fast", "sample", "--n", "2", "--steps", "1", "--out", "s.png")
    where = run(folder, python, "-c", "import cdrl_fast; print(cdrl_fast.__file__)")
    if str(python.parents[2]) not in where or not (folder / "s.png").stat().st_size:
        raise SystemExit(f"not the installed package: {where}")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        print("== everything that is found here, by way of a source distribution", flush=True)
        wheel = built(work / "full", OF_SDIST)
        assert isinstance(wheel, Path), wheel
        python = installed(work / "full" / "env", wheel)
        about(work, python, ": native\n")
        about(work / "full" / "tree", python, ": native\n")
        samples(work, python)
        shutil.copytree(ROOT / "tests", work / "tests")
        print(
            run(work, python, "-m", "pytest", "tests/ops", "-q", "-n", "auto", "-k", "not triton")
        )

        print("== no compiler, no triton", flush=True)
        wheel = built(work / "bare", **without_compiler(work / "empty"))
        assert isinstance(wheel, Path), wheel
        python = installed(work / "bare" / "env", wheel, without=("triton",))
        about(work, python, ": reference\n", "could not be built when this was installed")
        about(work / "bare" / "tree", python, ": reference\n", "could not be built when this was")
        samples(work, python)

        print("== CDRL_NATIVE=OFF", flush=True)
        wheel = built(work / "off", CDRL_NATIVE="OFF")
        assert isinstance(wheel, Path), wheel
        python = installed(work / "off" / "env", wheel)
        about(work, python, ": reference\n", "CDRL_NATIVE=OFF")
        samples(work, python)

        print("== CDRL_NATIVE=ON and no compiler: an error", flush=True)
        output = built(work / "on", CDRL_NATIVE="ON", PATH=str(work / "empty"))
        assert isinstance(output, str), "a wheel came out"
        assert "CDRL_NATIVE=ON: " in output, output
    print("== all as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
