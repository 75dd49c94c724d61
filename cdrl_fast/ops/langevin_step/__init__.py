"""The Langevin update: drift, quadratic recovery term and noise in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cdrl_fast.ops.coefficients import Coefficient, check_coefficients, kernel_coefficients
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.langevin_step import native, reference
from cdrl_fast.ops.layout import overlap, same_elements
from cdrl_fast.ops.philox import check_int64, check_rng, check_steps, split_rng
from cdrl_fast.ops.registration import register

if TYPE_CHECKING:
    from cdrl_fast.ops.phase import Phase

BACKENDS = ("native", "cuda", "triton", "reference")
"""Backends in order of preference."""
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
    table, numbers = kernel_coefficients(coefficients, x)
    position, state = split_rng(rng)
    arguments = (grad, anchor, table, *numbers, *position, state, first_bad, backend)
    if out is x:
        _langevin_step_onto(x, *arguments)
        return x
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _langevin_step_into(x, *arguments, out)
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
    that is current at this call, and autograd records none.

    Args:
        y: state, float32 or float64, dense; written. It shares no memory with gradients.
        anchor, first_bad, backend: as for `langevin_step`.
        phase: the steps; the function must be called ``phase.steps`` times.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `langevin_step`.
    """
    rng = phase.key.first_step()
    _check(y, y, anchor, phase.coefficients, rng, first_bad, y)
    check_steps("langevin_step", phase.steps, rng, y)
    chosen = choose("langevin_step", backend, y.device, y.dtype, BACKENDS)
    dense = y.is_contiguous() and (anchor is None or not overlap(y, anchor))
    if chosen in ("native", "cuda") and y.numel() and dense:
        anchor = None if anchor is None else anchor.contiguous()
        return native.BoundStep(y, anchor, phase, rng, first_bad)
    positions = enumerate(phase.key.steps(phase.steps), 1)

    @torch.no_grad()
    def step(grad: Tensor) -> None:
        k, rng = next(positions)
        langevin_step_(
            y,
            grad,
            anchor,
            drift=phase.drift,
            pull=phase.pull,
            noise_std=phase.noise_std,
            rescale=phase.rescale if k == phase.steps else 1.0,
            rng=rng,
            first_bad=first_bad,
            backend=chosen,
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


def _run(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    table: Tensor | None,
    drift: float,
    pull: float,
    noise_std: float,
    rescale: float,
    seed: int,
    draw: int,
    first_sample: int,
    rng: Tensor | None,
    first_bad: Tensor | None,
    backend: str,
    out: Tensor | None = None,
) -> None:
    """Write ``out``, or x if it is None."""
    out = x if out is None else out
    chosen = choose("langevin_step", backend, x.device, x.dtype, BACKENDS)
    coefficients = (drift, pull, noise_std, rescale)
    position = (seed, draw, first_sample)
    if chosen == "reference" or not x.numel():
        values = coefficients if table is None else tuple(table)
        source = position if rng is None else rng
        out.copy_(reference.langevin_step(x, grad, anchor, values, source, first_bad))
        return
    x, grad = x.contiguous(), native.readable(grad)
    anchor = None if anchor is None else anchor.contiguous()
    # A kernel's output must be dense, and must not partly overlap an input.
    direct = out.is_contiguous() and all(
        t is None or t is out or same_elements(out, t) or not overlap(out, t)
        for t in (x, grad, anchor)
    )
    target = out if direct else torch.empty_like(x)
    arguments = (target, x, grad, anchor, table, coefficients, position, rng, first_bad)
    if chosen == "triton":
        from cdrl_fast.ops.langevin_step import triton_kernel

        triton_kernel.langevin_step(*arguments)
    else:
        native.langevin_step(*arguments)
    if not direct:
        out.copy_(target)
    else:
        torch.autograd.graph.increment_version(out)


_ARGUMENTS = (
    "Tensor grad, Tensor? anchor, Tensor? table, float drift, float pull, float noise_std, "
    "float rescale, SymInt seed, SymInt draw, SymInt first_sample, Tensor(b!)? rng, "
    "Tensor(c!)? first_bad, str backend"
)
_langevin_step_into = register(
    f"langevin_step_into(Tensor x, {_ARGUMENTS}, Tensor(a!) out) -> ()", _run
)
"""Operation that writes ``out``, which is not x.

``table``, if not None, is (4, batch) and replaces the four coefficients; ``rng``, if not None,
replaces (seed, draw, first_sample), and its draw is increased by one.
"""
_langevin_step_onto = register(f"langevin_step_onto(Tensor(a!) x, {_ARGUMENTS}) -> ()", _run)
"""The operation in place; a schema of its own tells torch.compile that x is written."""
