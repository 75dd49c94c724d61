"""Packages that are imported on use and may be absent; progress bars."""

from __future__ import annotations

import importlib
from typing import Any


def optional_module(module: str, package: str, extra: str) -> Any:
    """The module, or an ImportError that names the package and the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'this needs {package} ({error}): pip install "cdrl-fast[{extra}]"'
        ) from error


class Silent:
    """What a bar that is not shown has to offer."""

    n = 0

    def update(self, n: float = 1) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None: ...


def progress_bar(show: bool, **options: Any) -> Any:
    """tqdm with these options, which is imported only where it is shown."""
    if not show:
        return Silent()
    from tqdm.auto import tqdm

    return tqdm(**options)
