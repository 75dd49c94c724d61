"""How many bytes of tensors are alive at a time."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes, the backward ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def _gone(self, address: int) -> None:
        self.now -= self.known.pop(address)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            t.untyped_storage()._cdata
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self.known and address not in given:
                self.known[address] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, address)
        self.peak = max(self.peak, self.now)
        return result


def peak(work: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``work`` held at a time, in operations torch sees."""
    with _Live() as live:
        work()
    return live.peak
