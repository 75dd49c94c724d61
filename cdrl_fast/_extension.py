"""The compiled module: loaded on first use; where it is absent, the reason is kept."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "0.2.0"
"""Version of these sources."""
INTERFACE = 6
"""Number of the calls between Python and the module; raised when they change."""

_NAME = "cdrl_fast._C"
_PACKAGE = Path(__file__).parent
_INSTALL = "run `pip install .` in the source folder"


class _PurePython(ImportError):
    """The install left the compiled module out and kept the reason, so nobody needs a warning."""


@cache
def _loaded() -> tuple[ModuleType | None, str | None]:
    # torch brings the threads' runtime; with it loaded first, both use one pool of threads.
    import torch  # noqa: F401

    try:
        return _beside() or _installed(list(metadata.distributions(name="cdrl-fast"))), None
    except _PurePython as error:
        return None, str(error)
    except ImportError as error:
        why = f"{error}; {_INSTALL}"
        warnings.warn(f"cdrl_fast runs in pure Python, many times slower: {why}", stacklevel=3)
        return None, why


def _beside() -> ModuleType | None:
    """Load the module that lies beside this file; None where there is none."""
    # find_spec would also find the module of an editable install of another folder.
    file = _module_in(_PACKAGE)
    return None if file is None else _load(file)


def _installed(distributions: list[metadata.Distribution]) -> ModuleType:
    """Load the module of an installed distribution: a source folder's package has none beside it.

    Raises:
        ImportError: none of the distributions has a module, or it does not fit this package.
    """
    for distribution in distributions:
        if file := module_file(distribution):
            if distribution.version != VERSION:
                raise ImportError(
                    f"the installed cdrl-fast is version {distribution.version}, the package in "
                    f"{_PACKAGE} version {VERSION}"
                )
            return _load(file)
    folders = [_PACKAGE, *(Path(str(d.locate_file("cdrl_fast"))) for d in distributions)]
    for folder in folders:
        if why := _note(folder, "absent"):
            raise _PurePython(f"the compiled module {why}")
    raise ImportError(f"neither {_PACKAGE} nor an installed cdrl-fast has a compiled module")


def module_file(distribution: metadata.Distribution) -> Path | None:
    """Return the file of the compiled module in an installed distribution; None where it has none.

    A folder of sources has metadata of its own after a build (``cdrl_fast.egg-info``), and an
    editable install keeps its files elsewhere: neither has the module where this looks.
    """
    return _module_in(Path(str(distribution.locate_file("cdrl_fast"))))


def _module_in(package: Path) -> Path | None:
    """Return the file of the compiled module in a package's folder; None where it has none."""
    files = (package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _load(file: Path) -> ModuleType:
    """Load the compiled module from a file.

    Raises:
        ImportError: it cannot be loaded, or its calls are not those that this package makes.
    """
    try:
        spec = importlib.util.spec_from_file_location(_NAME, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"the compiled module {file} cannot be loaded: {error}") from error
    if module.interface != INTERFACE:
        raise ImportError(
            f"the compiled module {file} has interface {module.interface}, expected {INTERFACE}"
        )
    sys.modules[_NAME] = module
    return module


def _note(folder: Path, name: str) -> str | None:
    """Return what an install noted in a package's folder; None where it noted nothing."""
    note = folder / "_build.json"
    text: str | None = json.loads(note.read_text()).get(name) if note.exists() else None
    return text


def why_without_cuda() -> str:
    """Return the reason why the loaded module has no CUDA kernels."""
    reason = _note(Path(str(module().__file__)).parent, "without_cuda")
    return f"({reason or 'no nvcc, or CDRL_CUDA=OFF'})"


def load() -> ModuleType | None:
    """Return the compiled module, or None where it is absent."""
    return _loaded()[0]


def module() -> ModuleType:
    """Return the compiled module, for callers whose backend was chosen because it is there."""
    compiled = load()
    assert compiled is not None
    return compiled


def address(tensor: Tensor | None) -> int:
    """Return a tensor's memory address, as the module takes it; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def reason() -> str | None:
    """Return the reason why `load` returns None; None where it does not."""
    return _loaded()[1]
