"""Build of the compiled module with CMake; pyproject.toml has everything else about the package.

Environment variables:
    CDRL_NATIVE     AUTO (default): build if there is a compiler, else install pure Python and
                    print the reason; ON: fail if the build fails; OFF: pure Python.
    CDRL_CUDA       AUTO (default): build CUDA kernels if there is nvcc; ON: fail without; OFF.
    CDRL_CUDA_ARCHS architectures, separated by ; or a comma; default "80;90;100".
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
    """Return the value of an environment variable: AUTO, ON or OFF."""
    value = os.environ.get(name, "AUTO").upper()
    if value not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"{name}: expected AUTO, ON or OFF, got {value!r}")
    return value


def interface() -> str:
    """Return the interface number that the loader expects of the module."""
    text = (ROOT / "cdrl_fast" / "_extension.py").read_text()
    return re.search(r"^INTERFACE = (\d+)$", text, re.MULTILINE)[1]


class CMakeBuild(build_ext):
    """A build command that runs CMake and ninja; under AUTO it notes the reason of a failure."""

    def run(self) -> None:
        native, cuda = choice("CDRL_NATIVE"), choice("CDRL_CUDA")
        module = Path(self.get_ext_fullpath(MODULE)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        reason = "was switched off at the install (CDRL_NATIVE=OFF)" if native == "OFF" else None
        without_cuda = None
        if reason is None:
            try:
                without_cuda = self.build_with_or_without_cuda(module, cuda)
            except OSError as error:
                for name, value in (("CDRL_NATIVE", native), ("CDRL_CUDA", cuda)):
                    if value == "ON":
                        raise SystemExit(f"{name}=ON: {error}") from error
                reason = f"could not be built when this was installed: {error}"
        if reason is not None:
            print(f"cdrl_fast: pure Python; the compiled module {reason}", file=sys.stderr)
            module.unlink(missing_ok=True)
        # Installed with the package, so that the library can report the reason later.
        note = {"absent": reason, "without_cuda": without_cuda}
        module.with_name("_build.json").write_text(json.dumps(note) + "\n")

    def build_with_or_without_cuda(self, module: Path, cuda: str) -> str | None:
        """Build the module; under AUTO a failure of CUDA does not cost the kernels for CPUs.

        Returns:
            The reason why a second build left CUDA out; None if the first one succeeded.
        """
        try:
            self.build(module, cuda)
        except OSError as error:
            if cuda != "AUTO" or shutil.which("nvcc") is None:
                raise
            self.build(module, "OFF")
            print(f"cdrl_fast: no CUDA kernels; with them {error}", file=sys.stderr)
            return f"with nvcc {error}"
        return None

    def build(self, module: Path, cuda: str) -> None:
        """Build the module; raise OSError with the reason if that fails."""
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise OSError(f"{tool} was not found")
        try:
            import pybind11
        except ImportError as error:
            raise OSError(f"pybind11 cannot be imported: {error}") from error
        # Every front end builds in one folder, so that later builds only compile changed files.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        work = ROOT.resolve() / "build" / tag
        work.mkdir(parents=True, exist_ok=True)
        scripts = str(Path(sys.executable).parent)
        archs = os.environ.get("CDRL_CUDA_ARCHS", "80;90;100").replace(",", ";")
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(work), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            # CMake's cache may name a ninja of a deleted environment. Python's own comes first: a
            # different version cannot read the build log and would compile everything again.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=scripts) or shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCDRL_INTERFACE={interface()}",
            f"-DCDRL_CUDA={cuda}",
            f"-DCDRL_CUDA_ARCHS={archs}",
        ]  # fmt: skip
        for action, command in (
            ("configure (is there a C++ compiler?)", configure),
            ("compile", ["cmake", "--build", str(work)]),
        ):
            if subprocess.run(command).returncode:
                raise OSError(f"cmake could not {action}; see the output of the installation")


setup(
    ext_modules=[Extension(MODULE, sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
