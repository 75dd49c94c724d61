"""Values and gradients of users' networks through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cdrl_fast.errors import BackendUnavailable


def compiled_gradient(energy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a compiled function for ∇_y Σ energy(y, …), forward and backward pass in one graph.

    Args:
        energy: (batch, …), … → (batch,), differentiable by `torch.func.grad`.

    Returns:
        A function of (y, …). It compiles when called, with a symbolic batch size: again only for
        other dtypes, devices and sizes, and for some very small batches (always for one sample).
        Weights may change in place.

    Raises:
        BackendUnavailable: on a call, if no compiler works.
    """
    return _guarded(_compiled(energy, _gradient), energy)


def compiled_value(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a compiled function for network(x, …); see `compiled_gradient`."""
    return _guarded(_compiled(network, _value), network)


def _gradient(energy: Callable[..., Tensor], y: Tensor, *rest: Tensor | None) -> Tensor:
    gradient: Tensor = torch.func.grad(lambda v: energy(v, *rest).sum())(y)
    return gradient


def _value(network: Callable[..., Tensor], x: Tensor, *rest: Tensor | None) -> Tensor:
    return network(x, *rest)


_cache: WeakKeyDictionary[Any, dict[FunctionType, Callable[..., Tensor]]] = WeakKeyDictionary()


def _compiled(function: Callable[..., Tensor], body: Any) -> Callable[..., Tensor]:
    """Return ``body`` compiled, cached per module, per function's code, or per callable's class.

    torch.compile counts recompilations per code object and stops compiling at eight. Each energy's
    ``body`` is therefore a copy with its own code object.
    """
    is_module = isinstance(function, nn.Module)
    key = function if is_module else getattr(function, "__code__", type(function))
    bodies = _cache.setdefault(key, {})
    if body not in bodies:
        copy = FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
        bodies[body] = torch.compile(copy)
    return bodies[body]


def _guarded(run: Callable[..., Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a call of ``run(function, …)`` that explains a missing compiler."""
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
                "needs a C++ compiler on CPUs and triton on GPUs; install it, or use compile=False"
            ) from error

    return call
