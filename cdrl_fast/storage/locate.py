"""Where saved models and runs are: shipped with the library, in a folder, or on the Hub."""

from __future__ import annotations

import warnings
from pathlib import Path

from cdrl_fast.errors import CheckpointError
from cdrl_fast.storage.folder import SUMS, read_folder

SHIPPED = Path(__file__).parents[1] / "pretrained"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders of a training run, the newest one last."""
    folders = (run / "checkpoints").glob("[0-9]*")
    found = (f for f in folders if f.name.isdigit() and f.is_dir())
    return sorted(found, key=lambda f: int(f.name))


def newest_readable(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A run's newest checkpoint that is whole, or the folder itself, with its verified files.

    Raises:
        CheckpointError: nothing there is whole.
    """
    checkpoints = checkpoints_of(folder)
    for index, candidate in enumerate(reversed(checkpoints)):
        try:
            return candidate, read_folder(candidate)
        except CheckpointError as error:
            if index + 1 == len(checkpoints):
                raise
            warnings.warn(f"{error}; going on with the one before", stacklevel=3)
    return folder, read_folder(folder)


def find_saved(name: str | Path) -> Path:
    """The folder of a shipped name, a folder, or of a Hub id, which is downloaded.

    Raises:
        CheckpointError: none of these.
    """
    shipped = sorted(f.name for f in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    if str(name) in shipped:
        if Path(name).is_dir():
            warnings.warn(f"{name}: the shipped model, not the folder ./{name}", stacklevel=3)
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
            f"{repository}: no such folder; to read it as a Hub id, pip install 'cdrl-fast[hub]'"
        ) from None
    try:
        patterns = [CONFIG, WEIGHTS, SUMS]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{repository}: no such folder, and the Hub did not give it: {error}"
        ) from error
