"""Packages that are imported on use and may be absent."""

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
