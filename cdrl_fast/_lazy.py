"""Imports of optional packages, and progress bars."""

from __future__ import annotations

import importlib
from typing import Any


def optional_module(module: str, package: str, extra: str) -> Any:
    """Import and return a module of an optional package.

    Args:
        module: name of the module.
        package: name of the package, for the message.
        extra: the extra of cdrl-fast that installs the package.

    Raises:
        ImportError: the package is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'this needs {package} ({error}): pip install "cdrl-fast[{extra}]"'
        ) from error


class SilentBar:
    """Progress bar that shows nothing."""

    n = 0

    def update(self, n: float = 1) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *error: object) -> None: ...


def progress_bar(show: bool, **options: Any) -> Any:
    """Return a tqdm progress bar with these options, or a `SilentBar` unless ``show``.

    tqdm is imported only to show a bar.
    """
    if not show:
        return SilentBar()
    from tqdm.auto import tqdm

    return tqdm(**options)
