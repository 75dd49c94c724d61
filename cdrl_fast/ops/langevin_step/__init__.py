"""The Langevin update: drift, quadratic recovery term and noise in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.langevin_step import native, reference
from cdrl_fast.ops.langevin_step.reference import Coefficient
from cdrl_fast.ops.rooms import choose

NEVER = 2**63 - 1
"""Value of ``first_bad`` while all is finite."""


def langevin_step(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    *,
    drift: Coefficient,
    pull: Coefficient,
    noise_std: Coefficient,
    rng: tuple[int, int, int],
    rescale: Coefficient = 1.0,
    first_bad: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """One Langevin step: rescale·(x + drift·grad - pull·(x - anchor) + noise_std·z).

    Args:
        x: state, float32 or float64, (batch, …).
        grad: gradient of the energy network's output, same shape, any floating dtype.
        anchor: x_t of the recovery term, same shape and dtype as ``x``; None where there is none.
        drift, pull, noise_std, rescale: a number, or a tensor (batch,) with one entry a sample.
        rng: (seed, draw, first_sample) of the noise stream; see `normal`.
        first_bad: int64 tensor of one element, lowered to draw·2³¹ + position of the first sample
            that left the finite numbers; start it at 2⁶³ - 1. Stays on the device: no
            synchronisation.
        out: where to write; may be ``x``.
        backend: "native" (C++, float32 on CPUs, no autograd), "reference", or "auto": the first
            that can.

    Returns:
        The new state, in ``out`` if given.

    Raises:
        ValueError: shapes or sizes that do not fit. TypeError: dtypes that do not.
        BackendUnavailable: an explicit backend that cannot be had.

    Source: Langevin dynamics of a recovery likelihood (Gao et al., ICLR 2021).
    """
    _check(x, grad, anchor, drift, pull, noise_std, rescale, out)
    tracked = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad
        for t in (x, grad, anchor, drift, pull, noise_std, rescale)
    )
    room = choose("langevin_step", "reference" if tracked else backend, x.device, x.dtype)
    if room == "native":
        out = torch.empty_like(x) if out is None else out
        native.langevin_step(
            out,
            x,
            grad,
            anchor,
            coefficients=(drift, pull, noise_std, rescale),
            rng=rng,
            first_bad=first_bad,
        )
        return out
    seed, draw, first_sample = rng
    y = reference.langevin_step(
        x,
        grad,
        anchor,
        drift=drift,
        pull=pull,
        noise_std=noise_std,
        seed=seed,
        draw=draw,
        first_sample=first_sample,
        rescale=rescale,
    )
    if first_bad is not None and x.shape[0]:
        torch.minimum(first_bad, reference.first_non_finite(y, draw), out=first_bad)
    return y if out is None else out.copy_(y)


def langevin_step_(x: Tensor, grad: Tensor, anchor: Tensor | None, **kwargs: object) -> Tensor:
    """`langevin_step` in place: writes ``x`` and returns it."""
    return langevin_step(x, grad, anchor, out=x, **kwargs)  # type: ignore[arg-type]


def _check(
    x: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    drift: Coefficient,
    pull: Coefficient,
    noise_std: Coefficient,
    rescale: Coefficient,
    out: Tensor | None,
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"langevin_step: x must be float32 or float64, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError("langevin_step: x must have a batch dimension, got a scalar")
    for name, tensor in (("grad", grad), ("anchor", anchor), ("out", out)):
        if tensor is None:
            continue
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"langevin_step: {name} must have x's shape {tuple(x.shape)} on {x.device}, got "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if name != "grad" and tensor.dtype != x.dtype:
            raise TypeError(f"langevin_step: {name} must be {x.dtype} like x, got {tensor.dtype}")
    for name, value in (
        ("drift", drift),
        ("pull", pull),
        ("noise_std", noise_std),
        ("rescale", rescale),
    ):
        if isinstance(value, Tensor) and value.dim() and value.shape != (x.shape[0],):
            raise ValueError(
                f"langevin_step: {name} must be a number or have shape ({x.shape[0]},), got "
                f"{tuple(value.shape)}"
            )
    if anchor is None and not (isinstance(pull, (int, float)) and pull == 0.0):
        raise ValueError("langevin_step: without an anchor, pull must be 0.0")
