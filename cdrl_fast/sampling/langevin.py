"""`langevin`: Langevin dynamics on any differentiable log-density."""

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
from cdrl_fast.errors import ChainDiverged, check_integer
from cdrl_fast.ops.dispatch import automatic
from cdrl_fast.ops.keys import langevin_key
from cdrl_fast.ops.langevin_step import NEVER, bound_step, decode_first_bad
from cdrl_fast.ops.mlp_chain import BACKENDS, Program, mlp_chain_, value
from cdrl_fast.ops.phase import Phase
from cdrl_fast.sampling.metropolis import adjusted_steps_

LogDensity = Callable[[Tensor], Tensor] | Program

FIRST_DRAW = 2**31
"""The draw of step 0; the lower half of the draws is for models with levels."""
_MAX_TRITON_WIDTH = 1024
_ACCEPTANCE_OFFSET = 2**62
"""Offset of the sample index in the acceptance draws, so that these differ from the noise."""


@overload
def langevin(
    log_density: LogDensity,
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
    log_density: LogDensity,
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
    log_density: LogDensity,
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
    """Run Langevin dynamics on a density: x ← x + (step_size/2) ∇ log p(x) + √step_size z.

    Without ``metropolis`` the steps are unadjusted (ULA), and a finite step size biases the
    distribution of the chains a little. With it the stationary distribution is p itself (MALA).

    Args:
        log_density: differentiable callable (batch, …) → (batch,) that returns log p up to a
            constant; larger is more probable. Parameters receive no gradients; those of a
            ``torch.nn.Module`` have ``requires_grad=False`` during the call, which is faster. A
            ``torch.nn.Sequential`` of linear maps and activations that ends in ``Linear(n, 1)`` and
            ``Flatten(0)``, or a `Program`, takes all steps in one compiled call if ``x`` is
            float32 (batch, dim) and neither ``trace`` nor ``metropolis`` is set; on CUDA devices by
            triton, for layers of at most 1024 features. Autograd computes the gradients of
            everything else. The two ways agree to rounding.
        x: initial states, float32 or float64, (batch, …). They are not modified.
        steps: number of steps, at least 0; ``first_step + steps`` is at most 2³¹.
        step_size: variance of the noise of a step, positive.
        seed: 64-bit integer. The same seed gives the same noise.
        first_sample: index of the first chain in the stream of the seed. Chains 32 to 63 are
            ``langevin(log_density, x[32:64], first_sample=32, …)``.
        first_step: number of steps that these chains have already taken. A chain that continues
            with it does not repeat noise.
        metropolis: whether to accept or reject each step (MALA). Each step evaluates value and
            gradient once, by autograd.
        trace: whether to return the states after all steps as well.
        backend: implementation of the steps: "native" (C++, on CPUs), "cuda", "triton",
            "reference", or "auto": the first that is available.
        compile: whether to compile a log-density that is left to autograd with ``torch.compile``,
            value and gradient in one graph for any batch size. `torch.func.grad` must accept the
            log-density. Compiling takes seconds; it needs a C++ compiler on CPUs and triton on
            GPUs.

    Returns:
        The final states, of the shape and dtype of ``x``. With ``trace`` a pair (final states,
        all states), the latter (steps + 1, batch, …) beginning with ``x``.

    Raises:
        ValueError, TypeError: an argument has a wrong value or type, or ``log_density`` does not
            return one differentiable number per chain.
        ChainDiverged: a state became non-finite (NaN or Inf); the error names chain and step.
        BackendUnavailable: an explicit ``backend``, or ``compile``, is not available here.

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
        check_integer("langevin", "first_sample", first_sample, 0, _ACCEPTANCE_OFFSET - len(x))
    if metropolis and compile:
        raise ValueError(
            "langevin: metropolis=True computes its gradients by autograd and cannot be combined "
            "with compile=True; leave compile out"
        )
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"langevin: step_size must be positive and finite, got {step_size}")
    with torch.inference_mode(False), torch.enable_grad(), _frozen_parameters(log_density):
        y = x.detach().clone(memory_format=torch.contiguous_format)
        states = y.new_empty((steps + 1, *y.shape)) if trace else None
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=x.device)
        phase = Phase(
            steps,
            drift=0.5 * step_size,
            pull=0.0,
            noise_std=math.sqrt(step_size),
            rescale=1.0,
            key=langevin_key(seed, first_step, first_sample),
        )
        update = bound_step(y, None, phase, first_bad=first_bad, backend=backend)
        one_call = not (trace or metropolis) and steps
        program_backend = _program_backend(x, backend) if one_call else "reference"
        program = _compiled_program(log_density, x, program_backend)
        if program is not None:
            mlp_chain_(program, y, phase=phase, first_bad=first_bad, backend=program_backend)
        elif metropolis:
            if states is not None:
                states[0] = y

            def record(step: int) -> None:
                if states is not None:
                    states[step] = y

            draw = FIRST_DRAW + first_step - 1
            adjusted_steps_(
                _value_and_gradient(log_density),
                y,
                None,
                steps=steps,
                drift=0.5 * step_size,
                pull=0.0,
                noise_std=math.sqrt(step_size),
                noise=lambda k: (seed, draw + k, first_sample),
                acceptance=lambda k: (seed, draw + k, first_sample + _ACCEPTANCE_OFFSET),
                first_bad=first_bad,
                backend=backend,
                after_step=record,
            )
        else:
            gradient = _gradient_function(log_density, y, compile=compile and steps > 0)
            for step in range(steps):
                if states is not None:
                    states[step] = y
                update(gradient())
    _raise_if_diverged(int(first_bad), first_sample)
    if states is None:
        return y
    states[steps] = y
    return y, states


def _program_backend(x: Tensor, backend: str) -> str:
    """Return the backend that runs all steps in one call; "reference" where none does."""
    if x.dtype != torch.float32:
        return "reference"
    chosen = automatic(x.device, BACKENDS) if backend == "auto" else backend
    return chosen if chosen in ("native", "triton") else "reference"


def _compiled_program(log_density: LogDensity, x: Tensor, backend: str) -> Program | None:
    """Return the log-density as a program, where the program can replace autograd; else None."""
    if backend == "reference" or type(x) not in (Tensor, nn.Parameter) or x.dim() != 2:
        return None
    # Autocast and torch.compile change the module's arithmetic, which a program would ignore.
    if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():
        return None
    program = log_density if isinstance(log_density, Program) else program_of(log_density)
    if program is None or program.dim != x.shape[1] or program.rows:
        return None
    # Wider layers fill a GPU without the kernel, whose blocks would each read all their weights.
    if backend == "triton" and max(program.widths) > _MAX_TRITON_WIDTH:
        return None
    fits = (program.dtype, program.head.device) == (x.dtype, x.device)
    return program if fits else None


def _gradient_function(
    log_density: LogDensity, y: Tensor, *, compile: bool
) -> Callable[[], Tensor]:
    """Return a function that computes ∇ log p at the current contents of y."""
    if isinstance(log_density, Program) or not compile:
        return _autograd_function(_as_callable(log_density), y)
    # One call by autograd raises readable errors for a wrong log-density before it is compiled.
    _autograd_function(log_density, y)()
    return partial(compiled_gradient(log_density), y)


def _as_callable(log_density: LogDensity) -> Callable[[Tensor], Tensor]:
    return partial(value, log_density) if isinstance(log_density, Program) else log_density


def _value_and_gradient(log_density: LogDensity) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function that computes log p (batch,) and its gradient at a state."""
    function = _as_callable(log_density)

    def value_and_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_(True)
            value = function(leaf)
            _check_value(value, len(y))
            _check_differentiable(value)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return value_and_gradient


def _autograd_function(log_density: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes ∇ log p by autograd at the current contents of y."""
    # One leaf that shares y's memory serves all steps: a step's graph is freed before y changes.
    leaf = y.detach().requires_grad_(True)
    ones = None

    def gradient() -> Tensor:
        nonlocal ones
        value = log_density(leaf)
        if ones is None or value.shape != ones.shape or value.dtype != ones.dtype:
            _check_value(value, y.shape[0])
            ones = torch.ones_like(value)
        _check_differentiable(value)
        return torch.autograd.grad(value, leaf, ones)[0]

    return gradient


@contextmanager
def _frozen_parameters(log_density: LogDensity) -> Iterator[None]:
    """Freeze a module's parameters, so that graphs save no activations for their gradients."""
    parameters = log_density.parameters() if isinstance(log_density, nn.Module) else ()
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
        actual = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            "langevin: log_density must return one number per chain, a tensor of shape "
            f"({chains},), got {actual}"
        )


def _check_differentiable(value: Tensor) -> None:
    if not value.requires_grad:
        raise ValueError(
            "langevin: the value of log_density does not depend on x differentiably; compute it "
            "from x by differentiable torch operations"
        )


def _raise_if_diverged(code: int, first_sample: int) -> None:
    if code == NEVER:
        return
    draw, position = decode_first_bad(code)
    step, sample = draw - FIRST_DRAW, first_sample + position
    raise ChainDiverged(
        f"chain {sample} became non-finite (NaN or Inf) at step {step}; use a smaller step_size, "
        "or check the gradient of log_density",
        level=None,
        step=step,
        sample=sample,
    )
