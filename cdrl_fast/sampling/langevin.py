"""`langevin`: Langevin dynamics on any differentiable log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast.engine import Context, EnergyAt
from cdrl_fast.engine.compiled import compiled_gradient
from cdrl_fast.engine.sequential import program_of
from cdrl_fast.errors import ChainDiverged, check_integer
from cdrl_fast.ops.dispatch import automatic
from cdrl_fast.ops.keys import FIRST_STEP, MAX_ADJUSTED_SAMPLES, langevin_key
from cdrl_fast.ops.langevin_step import NEVER, decode_first_bad
from cdrl_fast.ops.mlp_chain import BACKENDS, Program, mlp_chain_, value, value_and_gradient
from cdrl_fast.ops.phase import Phase
from cdrl_fast.sampling.transitions import Adjusted, Transition, unadjusted

LogDensity = Callable[[Tensor], Tensor] | Program
Callback = Callable[[int, Tensor], None]

_MAX_TRITON_WIDTH = 1024


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
    callback: Callback | None = None,
    backend: str = "auto",
    compile: bool = False,
) -> Tensor:
    """Run Langevin dynamics on a density: x ← x + (step_size/2) ∇ log p(x) + √step_size z.

    Without ``metropolis`` the steps are unadjusted (ULA), and a finite step size biases the
    distribution of the chains a little. With it the stationary distribution is p itself (MALA).

    Args:
        log_density: differentiable callable (batch, …) → (batch,) that returns log p up to a
            constant; larger is more probable. Parameters receive no gradients; those of a
            ``torch.nn.Module`` have ``requires_grad=False`` during the call, which is faster. A
            ``torch.nn.Sequential`` of linear maps and activations that ends in ``Linear(n, 1)`` and
            ``Flatten(0)``, or a `Program`, takes all steps in one compiled call if ``x`` is
            float32 (batch, dim) and neither ``callback`` nor ``metropolis`` is set; on CUDA devices
            by triton, for layers of at most 1024 features. Autograd computes the gradients of
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
        callback: called with k and the states after step k = 1 … ``steps`` of this call. The chain
            goes on in the same memory, so clone what you keep, or use `langevin_trace`.
        backend: implementation of the steps: "native" (C++, on CPUs), "cuda", "triton",
            "reference", or "auto": the first that is available.
        compile: whether to compile a log-density that is left to autograd with ``torch.compile``,
            value and gradient in one graph for any batch size. `torch.func.grad` must accept the
            log-density. Compiling takes seconds; it needs a C++ compiler on CPUs and triton on
            GPUs.

    Returns:
        The final states, of the shape and dtype of ``x``.

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
    check_integer("langevin", "seed", seed, -(2**63), 2**64)
    check_integer("langevin", "first_step", first_step, 0, 2**31)
    check_integer("langevin", "steps", steps, 0, 2**31 - first_step + 1)
    samples = MAX_ADJUSTED_SAMPLES if metropolis else 2 * MAX_ADJUSTED_SAMPLES
    check_integer("langevin", "first_sample", first_sample, 0, samples - len(x))
    if metropolis and compile:
        raise ValueError(
            "langevin: metropolis=True computes its gradients by autograd and cannot be combined "
            "with compile=True; leave compile out"
        )
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"langevin: step_size must be positive and finite, got {step_size}")
    key, noise_std = langevin_key(seed, first_step, first_sample), math.sqrt(step_size)
    phase = Phase(steps, 0.5 * step_size, 0.0, noise_std, 1.0, key)
    with torch.inference_mode(False), torch.enable_grad(), _frozen_parameters(log_density):
        y = x.detach().clone(memory_format=torch.contiguous_format)
        first_bad = torch.full((), NEVER, dtype=torch.int64, device=x.device)
        one_call = callback is None and not metropolis and steps
        program_backend = _program_backend(x, backend) if one_call else "reference"
        program = _compiled_program(log_density, x, program_backend)
        energy: EnergyAt
        if program is None:
            energy = _AutogradDensity(log_density, compile=compile and steps > 0)
        else:
            energy, backend = _ProgramDensity(program), program_backend
        transition: Transition = Adjusted() if metropolis else unadjusted
        after_step = None if callback is None else lambda k: callback(k, y)
        context = Context(first_bad, backend, after_step, per_step=True)
        transition(energy, y, None, phase, context)
    _raise_if_diverged(int(first_bad), first_sample)
    return y


def langevin_trace(log_density: LogDensity, x: Tensor, *, steps: int, **options: Any) -> Tensor:
    """Run `langevin` and return the states after all steps.

    Args:
        log_density, x, steps: as for `langevin`.
        options: the other keyword arguments of `langevin`, except ``callback``.

    Returns:
        (steps + 1, batch, …), beginning with ``x``; the last are the states that `langevin` returns
        without a compiled call.

    Raises:
        ValueError, TypeError, ChainDiverged, BackendUnavailable: as `langevin`.

    Examples:
        >>> import torch
        >>> from cdrl_fast import langevin_trace
        >>> x = torch.zeros(10, 2)
        >>> langevin_trace(lambda x: -0.5 * (x**2).sum(1), x, steps=5, step_size=0.1).shape
        torch.Size([6, 10, 2])
    """
    states = [x.detach().clone()]
    langevin(log_density, x, steps=steps, callback=lambda _, y: states.append(y.clone()), **options)
    return torch.stack(states)


@dataclass
class _ProgramDensity(EnergyAt):
    """The log-density of a program, which takes a phase in one kernel call."""

    program: Program

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(self.program, y)

    def langevin_(self, y: Tensor, anchor: Tensor | None, phase: Phase, context: Context) -> None:
        first_bad, backend = context.first_bad, context.backend
        mlp_chain_(self.program, y, anchor, phase=phase, first_bad=first_bad, backend=backend)


class _AutogradDensity(EnergyAt):
    """A log-density whose gradient autograd, or ``torch.compile``, computes."""

    def __init__(self, log_density: LogDensity, *, compile: bool) -> None:
        self._function: Callable[[Tensor], Tensor]
        if isinstance(log_density, Program):
            self._function, self._compile = partial(value, log_density), False
        else:
            self._function, self._compile = log_density, compile
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._state = self._leaf = self._ones = torch.empty(0)

    def gradient(self, y: Tensor) -> Tensor:
        if self._compiled is not None:
            return self._compiled(y)
        # One leaf on y's memory serves all steps: a step's graph is freed before y changes.
        if self._state is not y:
            self._state, self._leaf = y, y.detach().requires_grad_(True)
        value = self._value(self._leaf)
        if value.shape != self._ones.shape or value.dtype != self._ones.dtype:
            self._ones = torch.ones_like(value)
        gradient = torch.autograd.grad(value, self._leaf, self._ones)[0]
        if self._compile:
            # This call raised readable errors for a wrong log-density before it is compiled.
            self._compiled = compiled_gradient(self._function)
            return self._compiled(y)
        return gradient

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_(True)
            value = self._value(leaf)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    def _value(self, leaf: Tensor) -> Tensor:
        value = self._function(leaf)
        if not isinstance(value, Tensor) or value.shape != (len(leaf),):
            actual = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                "langevin: log_density must return one number per chain, a tensor of shape "
                f"({len(leaf)},), got {actual}"
            )
        if not value.requires_grad:
            raise ValueError(
                "langevin: the value of log_density does not depend on x differentiably; compute "
                "it from x by differentiable torch operations"
            )
        return value


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
    program = program_of(log_density)
    if program is None or program.dim != x.shape[1] or program.rows:
        return None
    # Wider layers fill a GPU without the kernel, whose blocks would each read all their weights.
    if backend == "triton" and max(program.widths) > _MAX_TRITON_WIDTH:
        return None
    fits = (program.dtype, program.head.device) == (x.dtype, x.device)
    return program if fits else None


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


def _raise_if_diverged(code: int, first_sample: int) -> None:
    if code == NEVER:
        return
    draw, position = decode_first_bad(code)
    step, sample = draw - FIRST_STEP, first_sample + position
    raise ChainDiverged(
        f"chain {sample} became non-finite (NaN or Inf) at step {step}; use a smaller step_size, "
        "or check the gradient of log_density",
        level=None,
        step=step,
        sample=sample,
    )
