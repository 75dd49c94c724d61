"""Reading files: bytes, archives of arrays, mapped arrays, and pickles that contain only arrays."""

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

# The only functions that a pickle of arrays, lists and numbers calls, under NumPy's old and new
# module names.
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


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unzipped if its name ends in .gz."""
    require(path.is_file(), f"{path}: no such file; check the path or download it")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from error


def read_npz(path: Path, names: Sequence[str], advice: str) -> dict[str, NDArray[Any]]:
    """Return the named arrays, as far as a .npz file has them; none may contain Python objects.

    The message about an array that cannot be read ends with ``advice``.
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


def map_npy(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file, memory-mapped and read-only."""
    require(path.is_file(), f"{path}: no such file")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: is not a complete .npy file of numbers ({error}); write it again with np.save"
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")
        return super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle: arrays, lists, dictionaries, text and numbers.

    No code of the pickle runs. Byte strings of Python 2 become text.

    Raises:
        DataError: the file is missing or damaged, or contains anything else.
    """
    require(path.is_file(), f"{path}: no such file; check the path or download it")
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path}: is not a complete pickle of arrays ({error}); download it again"
        ) from error
