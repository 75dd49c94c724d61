"""Locations of saved models and runs: shipped with the library, in a folder, or on the Hub."""

from __future__ import annotations

import warnings
from pathlib import Path

from cdrl_fast.errors import CheckpointError
from cdrl_fast.storage.folder import SUMS, read_folder

SHIPPED = Path(__file__).parents[1] / "pretrained"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the checkpoint folders of a training run, the newest one last."""
    paths = (run / "checkpoints").glob("[0-9]*")
    folders = (path for path in paths if path.name.isdigit() and path.is_dir())
    return sorted(folders, key=lambda folder: int(folder.name))


def newest_readable(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """Return the newest intact checkpoint of a run and its verified files.

    A corrupt checkpoint is skipped with a warning. A folder without checkpoints is read itself.

    Raises:
        CheckpointError: no checkpoint is intact, or the folder itself is not.
    """
    checkpoints = checkpoints_of(folder)
    for index, candidate in enumerate(reversed(checkpoints)):
        try:
            return candidate, read_folder(candidate)
        except CheckpointError as error:
            if index + 1 == len(checkpoints):
                raise
            warnings.warn(f"{error}; loading the checkpoint before it instead", stacklevel=3)
    return folder, read_folder(folder)


def find_saved(name: str | Path) -> Path:
    """Return the folder of a saved model: a shipped name, a folder, or a Hub id to download.

    Raises:
        CheckpointError: the name is none of these, or the download failed.
    """
    shipped = sorted(f.name for f in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    if str(name) in shipped:
        if Path(name).is_dir():
            warnings.warn(
                f"{name}: loading the shipped model; for the folder use ./{name}", stacklevel=3
            )
        return SHIPPED / str(name)
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    raise CheckpointError(
        f"{name}: no such model; expected a shipped name ({', '.join(shipped) or 'none'}), a "
        "folder or a Hub id (owner/name)"
    )


def _download(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{repository}: no such folder; to load a Hub id, pip install 'cdrl-fast[hub]'"
        ) from None
    try:
        patterns = [CONFIG, WEIGHTS, SUMS]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{repository}: no such folder, and the download from the Hub failed: {error}"
        ) from error
