"""The compiled module: loaded on first use; where it is absent, the reason is kept."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "0.2.0"
"""Version of these sources."""
INTERFACE = 4
"""Number of the calls between Python and the module; raised when they change."""


@cache
def _loaded() -> tuple[ModuleType | None, str | None]:
    # torch brings the threads' runtime; with it loaded first, both use one pool of threads.
    import torch  # noqa: F401

    try:
        module = importlib.import_module("cdrl_fast._C")
    except ImportError as error:
        return None, _why_absent() or f"the compiled module cannot be loaded: {error}"
    if module.interface != INTERFACE:
        return None, (
            f"the compiled module has interface {module.interface} and {INTERFACE} is expected: "
            "install again"
        )
    return module, None


def _why_absent() -> str | None:
    note = Path(__file__).with_name("_build.json")
    if not note.exists():
        return None
    reason = json.loads(note.read_text())["absent"]
    return None if reason is None else f"the compiled module {reason}"


def load() -> ModuleType | None:
    """The compiled module, or None."""
    return _loaded()[0]


def module() -> ModuleType:
    """The compiled module, for callers whose room was chosen because it is there."""
    found = load()
    assert found is not None
    return found


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where tensors are in memory, as the module takes them; 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def reason() -> str | None:
    """Why `load` returns None."""
    return _loaded()[1]
