"""Files as readers find them: bytes, archives of arrays, and pickles that can hold arrays alone."""

from __future__ import annotations

import gzip
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdrl_fast.data.dataset import require
from cdrl_fast.errors import DataError

# All that a pickle of arrays, lists and numbers calls, in the modules' old names and new ones.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # bytes in protocols up to 2
    *(
        (f"{package}.{module}", name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


def bytes_of(path: Path) -> bytes:
    """The bytes of a file, unzipped if its name ends in .gz."""
    require(path.is_file(), f"{path}: no such file; check the path or download it")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from error


def npz_arrays(path: Path, names: Sequence[str], advice: str) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that a .npz file has; none of them may hold Python objects.

    ``advice`` is what to do about one that cannot be read.
    """
    require(path.is_file(), f"{path}: no such file")
    require(zipfile.is_zipfile(path), f"{path}: is not a complete .npz file; {advice}")
    arrays, name = {}, "the list of arrays"
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in names:
                if name in archive.files:
                    arrays[name] = np.asarray(archive[name])
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot read {name!r} ({error}); {advice}") from error
    return arrays


def npy_mapped(path: Path) -> NDArray[Any]:
    """The array of a .npy file, read-only and left on the disk until it is looked at."""
    require(path.is_file(), f"{path}: no such file")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: is not a whole .npy file of numbers ({error}); write it again with np.save"
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is refused")
        return super().find_class(module, name)


def unpickled(path: Path) -> Any:
    """What a pickle holds, of arrays, lists, dictionaries, text and numbers; no code of it runs.

    Text of Python 2 comes out as text.

    Raises:
        DataError: no such file, a damaged one, or one that wants anything else.
    """
    require(path.is_file(), f"{path}: no such file; check the path or download it")
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path}: is not a whole pickle of arrays ({error}); download it again"
        ) from error
