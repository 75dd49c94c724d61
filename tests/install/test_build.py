"""Tests of the build of the compiled module: failures, and pure Python with its reason."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(tmp_path):
    """Return a function that builds with a failing cmake, in a copy of the build files.

    It returns the process and the reason in the build note.
    """
    tree, tools = tmp_path / "tree", tmp_path / "tools"
    (tree / "cdrl_fast").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / "setup.py", tree)
    shutil.copy(ROOT / "cdrl_fast" / "_extension.py", tree / "cdrl_fast")
    for name, code in (("cmake", 1), ("ninja", 0)):
        (tools / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tools / name).chmod(0o755)
    (tools / "pybind11.py").write_text("def get_cmake_dir():\n    return 'nowhere'\n")

    def run(**variables):
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        choices = {"CDRL_NATIVE": "AUTO", "CDRL_CUDA": "AUTO", **variables}
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tree,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(tools), **choices},
            capture_output=True,
            text=True,
        )
        note = tree / "cdrl_fast" / "_build.json"
        return done, json.loads(note.read_text())["absent"] if note.exists() else None

    run.tools = tools
    return run


def test_auto_installs_pure_python_and_reports_the_reason(build):
    done, reason = build()
    assert done.returncode == 0, done.stderr
    assert "cmake could not configure" in reason
    assert "pure Python" in done.stderr


def test_a_failure_of_cuda_does_not_cost_the_kernels_for_cpus(build):
    """An nvcc that is too old fails to configure; the second build is without it."""
    (build.tools / "cmake").write_text('#!/bin/sh\ncase "$*" in *CDRL_CUDA=AUTO*) exit 1;; esac\n')
    (build.tools / "nvcc").write_text("#!/bin/sh\n")
    (build.tools / "nvcc").chmod(0o755)
    done, reason = build()
    assert done.returncode == 0, done.stderr
    assert reason is None
    note = json.loads((build.tools.parent / "tree" / "cdrl_fast" / "_build.json").read_text())
    assert note["without_cuda"].startswith("with nvcc cmake could not configure")
    assert "no CUDA kernels" in done.stderr
    done, _ = build(CDRL_CUDA="ON")
    assert done.returncode == 0  # this cmake fails under AUTO alone


@pytest.mark.parametrize("variable", ["CDRL_NATIVE", "CDRL_CUDA"])
def test_on_fails_if_the_build_fails(build, variable):
    done, reason = build(**{variable: "ON"})
    assert done.returncode != 0
    assert f"{variable}=ON: cmake could not configure" in done.stderr
    assert reason is None


def test_auto_installs_pure_python_without_pybind11(build):
    (build.tools / "pybind11.py").write_text("raise ImportError('it is missing')\n")
    done, reason = build()
    assert done.returncode == 0, done.stderr
    assert "pybind11 cannot be imported: it is missing" in reason


def test_commands_are_quoted_in_a_folder_with_spaces_and_parentheses(tmp_path):
    """The shell can parse every command that ninja would run; nothing is compiled."""
    pybind11 = pytest.importorskip("pybind11")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tools = [shutil.which(tool, path=path) for tool in ("cmake", "ninja")]
    if None in tools:
        pytest.skip("there is no cmake or no ninja")
    cmake, ninja = tools
    tree = tmp_path / "cdrl fast (1)"
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    work = tree / "build"
    configure = [
        cmake, "-S", tree, "-B", work, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DCDRL_CUDA=OFF", "-DCDRL_INTERFACE=0", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'out'}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    done = subprocess.run(configure, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cmake cannot configure here: {done.stderr[-300:]}")
    commands = subprocess.check_output([ninja, "-C", work, "-t", "commands", "_C"], text=True)
    lines = [line for line in commands.splitlines() if not line.startswith("ninja: ")]
    assert any("_C.cpython" in line for line in lines)
    for line in lines:
        assert subprocess.run(["sh", "-n", "-c", line]).returncode == 0, line
