"""Folders of files with checksums: atomic writes, verified reads.

A folder contains its files and ``SHA256SUMS``, which ``sha256sum -c`` can check too. The checksums
cover every byte of the listed files, and a read also verifies the list itself. Tensors are stored
as safetensors, everything else as JSON; no pickle is written or read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdrl_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file with the named tensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def tensors_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU."""
    from safetensors.torch import load

    return load(data)


def json_to_bytes(config: Any) -> bytes:
    """Return a configuration as indented JSON with sorted keys."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def write_npz(path: Path, **arrays: Tensor) -> None:
    """Write CPU tensors as NumPy arrays into an npz file, atomically as `write_atomic` does."""
    buffer = io.BytesIO()
    numpy_arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez(buffer, **numpy_arrays)
    write_atomic(path, buffer.getvalue())


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename.

    After an interruption the file is either the old or the new one. Its folder is created if it
    does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        temporary = Path(f.name)
        try:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> Path:
    """Write files and their checksums into a folder.

    A new folder appears in one rename. In an existing folder the files are replaced one by one,
    the checksums last, and other files are not touched; `read_folder` detects an interruption.

    Args:
        folder: created if it does not exist.
        files: contents by file name.

    Returns:
        The folder.

    Raises:
        CheckpointError: the path is a file.
        OSError: no free space, or no permission to write; earlier files are unchanged.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to write to, got a file")
    contents = {**files, SUMS: _sums(files)}
    if folder.is_dir() and any(folder.iterdir()):
        for name, data in contents.items():
            write_atomic(folder / name, data)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, data in contents.items():
            write_atomic(temporary / name, data)
        os.chmod(temporary, 0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    return folder


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """Return the files of a folder written by `write_folder`, with verified checksums.

    Returns:
        Contents by file name, without ``SHA256SUMS``.

    Raises:
        CheckpointError: a file is missing or corrupt; the message names it.
    """
    folder = Path(folder)
    sums = folder / SUMS
    if not sums.is_file():
        raise CheckpointError(f"{folder}: no saved model or checkpoint here ({SUMS} is missing)")
    listed = sums.read_bytes()
    files: dict[str, bytes] = {}
    for line in listed.decode("utf-8", errors="replace").splitlines():
        name = line[66:]
        if not name or Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{sums}: corrupt, or a listed file is missing: {line!r}")
        files[name] = (folder / name).read_bytes()
        if _digest_line(name, files[name]) != line:
            raise CheckpointError(
                f"{folder / name}: corrupt, its checksum differs from the one in {SUMS}; restore "
                "the file or use another copy"
            )
    if not files or _sums(files) != listed:
        raise CheckpointError(f"{sums}: corrupt; restore the file or use another copy")
    return files


def read_json(folder: Path, files: Mapping[str, bytes], name: str) -> Any:
    """Return the content of one JSON file among the files that `read_folder` returned."""
    if name not in files:
        raise CheckpointError(f"{folder}: expected {name}, got {sorted(files)}")
    return json.loads(files[name])


def read_tensors(folder: Path, files: Mapping[str, bytes], name: str) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file among the files that `read_folder` returned."""
    if name not in files:
        raise CheckpointError(f"{folder}: expected {name}, got {sorted(files)}")
    return tensors_from_bytes(files[name])


def sums_of(folder: Path, names: Sequence[str]) -> bytes:
    """Return the content of `SUMS` for files in a folder, which may be larger than the memory."""
    lines = []
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            lines.append(_line(name, hashlib.file_digest(file, "sha256").hexdigest()))
    return "".join(f"{line}\n" for line in lines).encode()


def _digest_line(name: str, data: bytes) -> str:
    return _line(name, hashlib.sha256(data).hexdigest())


def _line(name: str, digest: str) -> str:
    return f"{digest}  {name}"


def _sums(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{_digest_line(name, files[name])}\n" for name in sorted(files)).encode()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
