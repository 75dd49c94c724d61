"""`langevin_step` in C++ (csrc/cpu/noise/) and CUDA C++ (csrc/cuda/langevin_step.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdrl_fast._extension import address, module
from cdrl_fast.ops.coefficients import kernel_coefficients
from cdrl_fast.ops.dispatch import compiled_kernel
from cdrl_fast.ops.philox import split_rng

if TYPE_CHECKING:
    from cdrl_fast.ops.phase import Phase

_GRAD_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of gradients that the kernels read, and their numbers in the compiled module."""


def readable(grad: Tensor) -> Tensor:
    """Return a gradient as kernels read it: dense, float32 or of a half precision."""
    return (grad if grad.dtype in _GRAD_TYPES else grad.float()).contiguous()


def arguments(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    coefficients: tuple[float, ...],
    position: tuple[int, int, int],
    rng: Tensor | None,
    first_bad: Tensor | None,
) -> Any:
    """Return a step's arguments for the compiled module.

    Args:
        out, x, anchor, first_bad: as in the public `langevin_step`; ``out`` may be ``x``. All are
            float32, dense and not empty, on the CPU or a GPU.
        grad: `readable`.
        table: the coefficients as (4, batch), read instead of ``coefficients``; or None.
        coefficients: drift, pull, noise_std, rescale.
        position: (seed, draw, first_sample), the seed in [-2⁶³, 2⁶³).
        rng: an `rng_state`, read instead of ``position`` and advanced by one draw; or None.
    """
    batch = x.shape[0]
    drift, pull, noise_std, rescale = coefficients
    seed, draw, first_sample = position
    return module().StepArguments(
        out=out.data_ptr(),
        x=x.data_ptr(),
        grad=grad.data_ptr(),
        grad_type=_GRAD_TYPES[grad.dtype],
        anchor=address(anchor),
        table=address(table),
        first_bad=address(first_bad),
        batch=batch,
        elements=x.numel() // batch,
        seed=seed,
        draw=draw,
        first_sample=first_sample,
        rng=address(rng),
        drift=drift,
        pull=pull,
        noise_std=noise_std,
        rescale=rescale,
    )


def langevin_step(out: Tensor, x: Tensor, *rest: Any) -> None:
    """Write ``out``; arguments as `arguments`."""
    kernel, more = compiled_kernel("langevin_step", x)
    kernel(arguments(out, x, *rest), *more)


class BoundStep:
    """The steps of a phase in place; a call takes the next one and costs 2 µs, not 20.

    Args:
        y, anchor, first_bad: as in `langevin_step`, but y shares no memory with the others.
        phase: the steps.
        rng: the first step's position in the noise stream, or an `rng_state`.
    """

    def __init__(
        self,
        y: Tensor,
        anchor: Tensor | None,
        phase: Phase,
        rng: tuple[int, int, int] | Tensor,
        first_bad: Tensor | None,
    ) -> None:
        last, numbers = kernel_coefficients(phase.coefficients, y)
        table = None if last is None else last.clone()
        if table is not None:
            table[3] = 1.0
        position, state = split_rng(rng)
        self._y, self._draw = y, position[1]
        self._last_draw = self._draw + phase.steps - 1
        self._last = address(last), numbers[3]
        self._arguments = arguments(
            y, y, y, anchor, table, (*numbers[:3], 1.0), position, state, first_bad
        )
        self._kernel, self._more = compiled_kernel("langevin_step", y)
        # The arguments have only the addresses of these.
        self._tensors = anchor, table, last, state, first_bad

    def __call__(self, grad: Tensor) -> None:
        grad, step = readable(grad), self._arguments
        step.grad, step.grad_type = grad.data_ptr(), _GRAD_TYPES[grad.dtype]
        step.draw = self._draw
        if self._draw == self._last_draw:
            step.table, step.rescale = self._last
        self._kernel(step, *self._more)
        self._draw += 1
        torch.autograd.graph.increment_version(self._y)
