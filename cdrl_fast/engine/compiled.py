"""Energies and initializers of a user's through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cdrl_fast.errors import BackendUnavailable


def compiled_gradient(energy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """∇ Σ energy(y, …) with respect to y, there and back in one graph.

    Args:
        energy: (batch, …), … → (batch,), differentiable by `torch.func.grad`.

    Returns:
        A function of (y, …). It compiles when called, with the batch as a variable: again only for
        other dtypes, devices and sizes, and for some very small batches (one sample always).
        Weights may change in place.

    Raises:
        BackendUnavailable: when called, where no compiler works.
    """
    return _guarded(_compiled(energy, _gradient), energy)


def compiled_value(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """network(x, …), compiled as in `compiled_gradient`."""
    return _guarded(_compiled(network, _value), network)


def _gradient(energy: Callable[..., Tensor], y: Tensor, *rest: Tensor | None) -> Tensor:
    gradient: Tensor = torch.func.grad(lambda v: energy(v, *rest).sum())(y)
    return gradient


def _value(network: Callable[..., Tensor], x: Tensor, *rest: Tensor | None) -> Tensor:
    return network(x, *rest)


_made: WeakKeyDictionary[Any, dict[FunctionType, Callable[..., Tensor]]] = WeakKeyDictionary()


def _compiled(function: Callable[..., Tensor], body: Any) -> Callable[..., Tensor]:
    """``body`` compiled, the same for the same module, code of a function, or class of callables.

    torch.compile counts recompilations by code object and stops compiling at eight: each energy's
    ``body`` therefore has a code object of its own, however many energies a process sees.
    """
    module = isinstance(function, nn.Module)
    key = function if module else getattr(function, "__code__", type(function))
    bodies = _made.setdefault(key, {})
    if body not in bodies:
        own = FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
        bodies[body] = torch.compile(own)
    return bodies[body]


def _guarded(run: Callable[..., Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import BackendCompilerFailed

    @torch.no_grad()
    def call(x: Tensor, *rest: Tensor | None) -> Tensor:
        for tensor in (x, *rest):
            if tensor is not None:
                maybe_mark_dynamic(tensor, 0)
        try:
            return run(function, x, *rest)
        except BackendCompilerFailed as error:
            raise BackendUnavailable(
                f"compile=True: torch.compile failed on {x.device} ({error.inner_exception}); it "
                "needs a C++ compiler on CPUs and triton on GPUs. Or leave compile out"
            ) from error

    return call
