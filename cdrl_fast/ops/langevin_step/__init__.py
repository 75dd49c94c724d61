"""The Langevin update: drift, quadratic recovery term and noise in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdrl_fast.ops.coefficients import Coefficient, check_coefficients, coefficient_table
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.langevin_step import native, reference
from cdrl_fast.ops.langevin_step.operator import langevin_step_into, langevin_step_onto
from cdrl_fast.ops.philox import check_int64, check_rng, signed

if TYPE_CHECKING:
    from cdrl_fast.ops.phase import Phase

NEVER = 2**63 - 1
"""Value of ``first_bad`` while all states are finite."""


def decode_first_bad(first_bad: int) -> tuple[int, int]:
    """Return draw and index in the batch of the first sample that became non-finite."""
    return first_bad >> 31, first_bad & (2**31 - 1)


def langevin_step(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    *,
    drift: Coefficient,
    pull: Coefficient,
    noise_std: Coefficient,
    rng: tuple[int, int, int] | Tensor,
    rescale: Coefficient = 1.0,
    first_bad: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return one Langevin step: rescale·(x + drift·grad - pull·(x - anchor) + noise_std·z).

    Args:
        x: state, float32 or float64, (batch, …).
        grad: gradient of the energy network's output, same shape, any floating dtype.
        anchor: x_t of the recovery term, same shape and dtype as ``x``; None for no recovery term.
        drift, pull, noise_std, rescale: a number, or a tensor (batch,) with one entry per sample.
        rng: position (seed, draw, first_sample) in the noise stream, see `normal`; or an
            `rng_state` on x's device, whose draw is increased by one.
        first_bad: int64 tensor of one element on x's device, initially 2⁶³ - 1. Its value becomes
            the minimum of itself and draw·2³¹ + index of the first sample that became non-finite
            (NaN or Inf), without synchronisation.
        out: tensor for the result, may be ``x``; None allocates one.
        backend: "native" (C++, on CPUs), "cuda", "triton", "reference", or "auto", the first of
            these that is available. float64, and steps that autograd records, are computed by the
            reference.

    Returns:
        The new state; ``out`` unless it is None.

    Raises:
        ValueError: a shape, device or size does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: ``backend`` names a backend that is not available.

    Source: Langevin dynamics of a recovery likelihood (Gao et al., ICLR 2021).

    Examples:
        >>> import torch
        >>> from cdrl_fast import ops
        >>> x = torch.ones(2, 3)
        >>> ops.langevin_step(x, -x, None, drift=0.5, pull=0.0, noise_std=0.0, rng=(0, 0, 0))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """
    coefficients = (drift, pull, noise_std, rescale)
    _check(x, grad, anchor, coefficients, rng, first_bad, out)
    tensors = (x, grad, anchor, *coefficients)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        y = reference.langevin_step(x, grad, anchor, coefficients, rng, first_bad)
        return y if out is None else out.copy_(y)
    table = coefficient_table(coefficients, x)
    scalars = (0.0, 0.0, 0.0, 0.0) if table is not None else coefficients
    state = rng if isinstance(rng, Tensor) else None
    seed, draw, first_sample = (0, 0, 0) if isinstance(rng, Tensor) else rng
    position = (signed(seed), draw, first_sample)
    arguments = (grad, anchor, table, *scalars, *position, state, first_bad, backend)
    if out is x:
        langevin_step_onto(x, *arguments)
        return x
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    langevin_step_into(out, x, *arguments)
    return out


def langevin_step_(x: Tensor, grad: Tensor, anchor: Tensor | None, **kwargs: object) -> Tensor:
    """Do one `langevin_step` in place: write ``x`` and return it.

    Args:
        x: state, written.
        grad, anchor: as for `langevin_step`.
        kwargs: the other arguments of `langevin_step`, except ``out``.

    Returns:
        ``x``.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `langevin_step`.

    Examples:
        >>> import torch
        >>> from cdrl_fast import ops
        >>> x = torch.ones(2, 3)
        >>> ops.langevin_step_(x, -x, None, drift=0.5, pull=0.0, noise_std=0.0, rng=(0, 0, 0)) is x
        True
    """
    return langevin_step(x, grad, anchor, out=x, **kwargs)  # type: ignore[arg-type]


def bound_step(
    y: Tensor,
    anchor: Tensor | None,
    phase: Phase,
    *,
    first_bad: Tensor | None,
    backend: str = "auto",
) -> Callable[[Tensor], None]:
    """Return a function of the gradient that takes the next step of a phase, in place.

    What is constant along the phase is checked and converted once. All steps run on the stream
    that is current at this call.

    Args:
        y: state, float32 or float64, dense; written.
        anchor, first_bad, backend: as for `langevin_step`.
        phase: the steps; the function must be called ``phase.steps`` times.
    """
    _check(y, y, anchor, phase.coefficients, phase.key.rng(), first_bad, y)
    remaining = phase.steps
    positions = phase.key.steps(phase.steps)

    def step(grad: Tensor) -> None:
        nonlocal remaining
        remaining -= 1
        langevin_step_(
            y,
            grad,
            anchor,
            drift=phase.drift,
            pull=phase.pull,
            noise_std=phase.noise_std,
            rescale=1.0 if remaining else phase.rescale,
            rng=next(positions),
            first_bad=first_bad,
            backend=backend,
        )

    return step


def _check(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    coefficients: tuple[Coefficient, ...],
    rng: tuple[int, int, int] | Tensor,
    first_bad: Tensor | None,
    out: Tensor | None,
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"langevin_step: x must be float32 or float64, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError("langevin_step: x must have a batch dimension, got a scalar")
    for name, tensor in (("grad", grad), ("anchor", anchor), ("out", out)):
        if tensor is None or tensor is x:
            continue
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"langevin_step: {name} must have x's shape {tuple(x.shape)} on {x.device}, got "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if name != "grad" and tensor.dtype != x.dtype:
            raise TypeError(f"langevin_step: {name} must be {x.dtype} like x, got {tensor.dtype}")
    if not grad.is_floating_point():
        raise TypeError(f"langevin_step: grad must be of a floating dtype, got {grad.dtype}")
    check_coefficients("langevin_step", coefficients, x.shape[0], anchor)
    check_int64("langevin_step", "first_bad", first_bad, 1, x)
    check_rng("langevin_step", rng, x)
