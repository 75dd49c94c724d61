"""Builds the compiled module with CMake; everything else about the package is in pyproject.toml.

Environment variables:
    CDRL_NATIVE     AUTO (default): build where there is a compiler, else install pure Python and
                    say why; ON: fail where it cannot be built; OFF: pure Python.
    CDRL_CUDA       AUTO (default): CUDA kernels where nvcc is found; ON: fail without; OFF.
    CDRL_CUDA_ARCHS architectures, "80;90;100" by default; a comma will do as well.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
MODULE = "cdrl_fast._C"


def choice(name: str) -> str:
    value = os.environ.get(name, "AUTO").upper()
    if value not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"{name}: expected AUTO, ON or OFF, got {value!r}")
    return value


def interface() -> str:
    """The number that the loader expects of the module."""
    text = (ROOT / "cdrl_fast" / "_native.py").read_text()
    return re.search(r"^INTERFACE = (\d+)$", text, re.MULTILINE)[1]


class CMakeBuild(build_ext):
    """Runs CMake and ninja; where that fails under AUTO, leaves a note of the reason instead."""

    def run(self) -> None:
        native, cuda = choice("CDRL_NATIVE"), choice("CDRL_CUDA")
        module = Path(self.get_ext_fullpath(MODULE)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        reason = "was switched off at the install (CDRL_NATIVE=OFF)" if native == "OFF" else None
        if reason is None:
            try:
                self.build(module, cuda)
            except OSError as error:
                for name, asked in (("CDRL_NATIVE", native), ("CDRL_CUDA", cuda)):
                    if asked == "ON":
                        raise SystemExit(f"{name}=ON: {error}") from error
                reason = f"could not be built when this was installed: {error}"
        if reason is not None:
            print(f"cdrl_fast: pure Python; the compiled module {reason}", file=sys.stderr)
            module.unlink(missing_ok=True)
        # Kept beside the package, so that the library can say it later.
        module.with_name("_build.json").write_text(json.dumps({"absent": reason}) + "\n")

    def build(self, module: Path, cuda: str) -> None:
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise OSError(f"{tool} was not found")
        try:
            import pybind11
        except ImportError as error:
            raise OSError(f"pybind11 cannot be imported: {error}") from error
        # One folder whatever asks for the build, so that another one compiles what has changed.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        work = ROOT.resolve() / "build" / tag
        work.mkdir(parents=True, exist_ok=True)
        beside = str(Path(sys.executable).parent)
        archs = os.environ.get("CDRL_CUDA_ARCHS", "80;90;100").replace(",", ";")
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            # An earlier build's may have been in an environment that is gone. The one beside Python
            # comes first: another version cannot read its log and would compile all again.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=beside) or shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCDRL_INTERFACE={interface()}",
            f"-DCDRL_CUDA={cuda}",
            f"-DCDRL_CUDA_ARCHS={archs}",
        ]  # fmt: skip
        for what, command in (
            ("configure (is there a C++ compiler?)", configure),
            ("compile", ["cmake", "--build", str(work)]),
        ):
            if subprocess.run(command).returncode:
                raise OSError(f"cmake could not {what}; the install's output says more")


setup(
    ext_modules=[Extension(MODULE, sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
