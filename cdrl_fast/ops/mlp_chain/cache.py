"""Cache of what backends compute from a program's weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from cdrl_fast.ops.mlp_chain.program import Program

T = TypeVar("T")
_Versions = tuple[tuple[int, int], ...]


class ProgramCache(Generic[T]):
    """Values computed from programs, by program and key, recomputed when weights change."""

    def __init__(self) -> None:
        self._entries: WeakKeyDictionary[Program, dict[Hashable, tuple[_Versions, T]]] = (
            WeakKeyDictionary()
        )

    def get(self, program: Program, key: Hashable, create: Callable[[], T]) -> T:
        """Return the value under ``key``, from ``create`` if it is missing or weights changed.

        A changed value is a new object, since another thread may be using the old one. Tensors
        created in inference mode have no version counter: with them, every call creates a value.
        """
        if any(t.is_inference() for t in program.tensors):
            return create()
        versions = tuple((t.data_ptr(), t._version) for t in program.tensors)
        entries = self._entries.setdefault(program, {})
        if key not in entries or entries[key][0] != versions:
            entries[key] = versions, create()
        return entries[key][1]
