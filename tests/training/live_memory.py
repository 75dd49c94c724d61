"""The peak of live tensor memory, in bytes."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """A counter of the storages that operations allocate, the backward pass's included."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def _freed(self, address: int) -> None:
        self.now -= self.sizes.pop(address)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {
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
            if address not in self.sizes and address not in inputs:
                self.sizes[address] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, address)
        self.peak = max(self.peak, self.now)
        return result


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that were alive at a time of those that ``work`` allocates in torch."""
    with _Live() as live:
        work()
    return live.peak
