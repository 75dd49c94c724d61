"""What rooms make of a program once, and again when its weights change."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from cdrl_fast.ops.mlp_chain.program import Program

T = TypeVar("T")
_Versions = tuple[tuple[int, int], ...]


class Plans(Generic[T]):
    """By program and key, a plan and the versions of the tensors that it was made from."""

    def __init__(self) -> None:
        self._plans: WeakKeyDictionary[Program, dict[Hashable, tuple[_Versions, T]]] = (
            WeakKeyDictionary()
        )

    def get(self, program: Program, key: Hashable, make: Callable[[], T]) -> T:
        """The plan under the key; a changed one is new, since another thread may be using the old.

        Tensors made in inference mode count no versions: of those a plan is made every time.
        """
        if any(t.is_inference() for t in program.tensors):
            return make()
        versions = tuple((t.data_ptr(), t._version) for t in program.tensors)
        plans = self._plans.setdefault(program, {})
        if key not in plans or plans[key][0] != versions:
            plans[key] = versions, make()
        return plans[key][1]
