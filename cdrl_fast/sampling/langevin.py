"""Langevin dynamics on any density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor, nn

from cdrl_fast.engine.compiled import compiled_gradient
from cdrl_fast.engine.sequential import program_of
from cdrl_fast.errors import ChainDiverged
from cdrl_fast.ops.dispatch import NON_CUDA_BACKENDS, automatic
from cdrl_fast.ops.langevin_step import NEVER, bound_step, place_of
from cdrl_fast.ops.mlp_chain import Program, mlp_chain_, value
from cdrl_fast.ops.philox import check_integer
from cdrl_fast.sampling.metropolis import adjusted_steps_

LogDensity = Callable[[Tensor], Tensor] | Program

FIRST_DRAW = 2**31
"""Draw of step 0: the lower half of the draws belongs to models with levels."""
_WIDEST = 1024
_ELSEWHERE = 2**62


@overload
def langevin(
    energy: LogDensity,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    seed: int = 0,
    first_sample: int = 0,
    first_step: int = 0,
    metropolis: bool = False,
    trace: Literal[False] = False,
    backend: str = "auto",
    compile: bool = False,
) -> Tensor: ...


@overload
def langevin(
    energy: LogDensity,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    seed: int = 0,
    first_sample: int = 0,
    first_step: int = 0,
    metropolis: bool = False,
    trace: Literal[True],
    backend: str = "auto",
    compile: bool = False,
) -> tuple[Tensor, Tensor]: ...


def langevin(
    energy: LogDensity,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    seed: int = 0,
    first_sample: int = 0,
    first_step: int = 0,
    metropolis: bool = False,
    trace: bool = False,
    backend: str = "auto",
    compile: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Langevin dynamics: each step x ← x + (step_size/2) ∇ log p(x) + √step_size z.

    Unadjusted (ULA) unless ``metropolis`` is set; its stationary distribution is then p itself.

    Args:
        energy: any differentiable callable (batch, …) → (batch,) whose value is log p up to a
            constant: larger is more probable. Its parameters get no gradients; those of a
            ``torch.nn.Module`` are frozen meanwhile (``requires_grad``), which is faster. A
            ``torch.nn.Sequential`` of linear maps and activations that ends in ``Linear(n, 1)`` and
            ``Flatten(0)``, or a `Program`, runs compiled, all steps at once, in float32 without
            ``trace`` (on CUDA devices by triton, if no layer has more than 1024 features); any
            other by autograd, with the same result to rounding.
        x: where the chains begin, float32 or float64, (batch, …); left as it is.
        steps: how many, 0 to 2³¹ together with ``first_step``.
        step_size: positive; the square of a step's noise.
        seed: 64-bit integer; the same seed gives the same noise.
        first_sample: index of the first chain in the seed's stream: chains 32 to 63 are
            ``langevin(energy, x[32:], first_sample=32, …)``.
        first_step: steps taken before; with it a chain goes on without repeating noise.
        metropolis: accept or refuse each step, so that p is sampled whatever the step size
            (MALA); by autograd, with one value and gradient a step.
        trace: return the states as well.
        backend: "native" (C++, on CPUs), "cuda", "triton", "reference", or "auto": the first that
            can.
        compile: whether an energy that is followed by autograd goes through ``torch.compile``,
            there and back in one graph with the batch as a variable. The energy must be one that
            `torch.func.grad` takes; compiling takes seconds, and needs a C++ compiler on CPUs and
            triton on GPUs.

    Returns:
        The last state, like ``x``. With ``trace`` a pair (last state, states), the states being
        (steps + 1, batch, …) from the beginning on.

    Raises:
        ValueError, TypeError: an argument that does not fit, or an energy that does not give one
            differentiable number a chain.
        ChainDiverged: a state left the finite numbers; names step and chain.
        BackendUnavailable: an explicit backend, or ``compile``, that cannot be had.

    Examples:
        >>> import torch
        >>> from cdrl_fast import langevin
        >>> x = langevin(lambda x: -0.5 * (x**2).sum(1), torch.zeros(1000, 2), steps=200,
        ...              step_size=0.1)
        >>> bool((x.var() - 1).abs() < 0.15)
        True

    Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions", 1996.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1:
        raise TypeError("langevin: x must be a floating-point tensor with a batch dimension")
    check_integer("langevin", "first_step", first_step, 0, 2**31)
    check_integer("langevin", "steps", steps, 0, 2**31 - first_step + 1)
    if metropolis:
        check_integer("langevin", "first_sample", first_sample, 0, _ELSEWHERE - len(x))
    if metropolis and compile:
        raise ValueError("langevin: metropolis runs by autograd; leave compile out")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"langevin: step_size must be positive and finite, got {step_size}")
    with torch.inference_mode(False), torch.enable_grad(), _frozen(energy):
        y = x.detach().clone(memory_format=torch.contiguous_format)
        states = y.new_empty((steps + 1, *y.shape)) if trace else None
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=x.device)
        update = bound_step(
            y,
            drift=0.5 * step_size,
            noise_std=math.sqrt(step_size),
            seed=seed,
            first_sample=first_sample,
            first_bad=first_bad,
            backend=backend,
        )
        alone = not (trace or metropolis) and steps
        chosen = _chosen_backend(x, backend) if alone else "reference"
        program = _compiled(energy, x, chosen)
        if program is not None:
            mlp_chain_(
                program,
                y,
                steps=steps,
                drift=0.5 * step_size,
                pull=0.0,
                noise_std=math.sqrt(step_size),
                seed=seed,
                draw=FIRST_DRAW + first_step,
                first_sample=first_sample,
                first_bad=first_bad,
                backend=chosen,
            )
        elif metropolis:
            if states is not None:
                states[0] = y

            def keep(step: int) -> None:
                if states is not None:
                    states[step] = y

            begun = FIRST_DRAW + first_step - 1
            adjusted_steps_(
                _value_and_gradient(energy),
                y,
                None,
                steps=steps,
                drift=0.5 * step_size,
                pull=0.0,
                noise_std=math.sqrt(step_size),
                noise=lambda k: (seed, begun + k, first_sample),
                # The step's draw, of samples that no chain has.
                acceptance=lambda k: (seed, begun + k, first_sample + _ELSEWHERE),
                first_bad=first_bad,
                backend=backend,
                each=keep,
            )
        else:
            gradient = _gradient_of(energy, y, compile=compile and steps > 0)
            for step in range(steps):
                if states is not None:
                    states[step] = y
                update(gradient(), FIRST_DRAW + first_step + step)
    _raise_if_diverged(int(first_bad), first_sample)
    if states is None:
        return y
    states[steps] = y
    return y, states


def _chosen_backend(x: Tensor, backend: str) -> str:
    """The room of the compiled chain; "reference" where there is none."""
    if x.dtype != torch.float32:
        return "reference"
    chosen = automatic(x.device, NON_CUDA_BACKENDS) if backend == "auto" else backend
    return chosen if chosen in ("native", "triton") else "reference"


def _compiled(energy: LogDensity, x: Tensor, chosen: str) -> Program | None:
    """The energy for the compiled chain, where that may stand in for autograd's."""
    if chosen == "reference" or type(x) not in (Tensor, nn.Parameter) or x.dim() != 2:
        return None
    # Both would make something else of the module than its float32 formula.
    if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():
        return None
    program = energy if isinstance(energy, Program) else program_of(energy)
    if program is None or program.dim != x.shape[1] or program.rows:
        return None
    # Wider maps fill a GPU by themselves, and would pass through each of its processors' caches.
    if chosen == "triton" and max(program.widths) > _WIDEST:
        return None
    fits = (program.dtype, program.head.device) == (x.dtype, x.device)
    return program if fits else None


def _gradient_of(energy: LogDensity, y: Tensor, *, compile: bool) -> Callable[[], Tensor]:
    """A function that gives ∇ energy at what y holds when it is called."""
    if isinstance(energy, Program) or not compile:
        return _by_autograd(_function(energy), y)
    # What autograd would say of a wrong energy, before a compiler sees it.
    _by_autograd(energy, y)()
    return partial(compiled_gradient(energy), y)


def _function(energy: LogDensity) -> Callable[[Tensor], Tensor]:
    return partial(value, energy) if isinstance(energy, Program) else energy


def _value_and_gradient(energy: LogDensity) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    function = _function(energy)

    def both(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_(True)
            found = function(leaf)
            _check_value(found, len(y))
            _check_differentiable(found)
            return found.detach(), torch.autograd.grad(found.sum(), leaf)[0]

    return both


def _by_autograd(energy: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[], Tensor]:
    # One leaf on y's memory serves all steps: a step's graph is gone before y changes.
    leaf = y.detach().requires_grad_(True)
    ones = None

    def gradient() -> Tensor:
        nonlocal ones
        value = energy(leaf)
        if ones is None or value.shape != ones.shape or value.dtype != ones.dtype:
            _check_value(value, y.shape[0])
            ones = torch.ones_like(value)
        _check_differentiable(value)
        return torch.autograd.grad(value, leaf, ones)[0]

    return gradient


@contextmanager
def _frozen(energy: LogDensity) -> Iterator[None]:
    """Freezes a module's parameters, so that no graph keeps what only they would need."""
    parameters = energy.parameters() if isinstance(energy, nn.Module) else ()
    frozen = [p for p in parameters if p.requires_grad and p.is_leaf]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _check_value(value: object, chains: int) -> None:
    if not isinstance(value, Tensor) or value.shape != (chains,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"langevin: energy must return one number a chain, shape ({chains},), got {got}"
        )


def _check_differentiable(value: Tensor) -> None:
    if not value.requires_grad:
        raise ValueError("langevin: energy's value does not depend on x differentiably")


def _raise_if_diverged(code: int, first_sample: int) -> None:
    if code == NEVER:
        return
    draw, position = place_of(code)
    step, sample = draw - FIRST_DRAW, first_sample + position
    raise ChainDiverged(
        f"chain {sample} left the finite numbers at step {step}; use a smaller step_size, or check "
        "the energy's gradient",
        level=None,
        step=step,
        sample=sample,
    )
