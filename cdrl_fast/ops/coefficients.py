"""Coefficients of the Langevin update: numbers, or tensors with one or batch elements."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficient = float | Tensor

COEFFICIENT_NAMES = ("drift", "pull", "noise_std", "rescale")


def check_coefficients(
    operation: str, coefficients: tuple[Coefficient, ...], batch: int, anchor: Tensor | None
) -> None:
    """Raise ValueError if a shape does not fit, or the recovery term has no anchor.

    Args:
        operation: name for messages.
        coefficients: drift, pull, noise_std, rescale.
        batch: number of samples.
        anchor: None requires a pull of 0.0.
    """
    for name, value in zip(COEFFICIENT_NAMES, coefficients, strict=True):
        if isinstance(value, Tensor) and value.dim() and value.shape not in ((1,), (batch,)):
            raise ValueError(
                f"{operation}: {name} must be a number or have shape ({batch},) or (1,), got "
                f"{tuple(value.shape)}"
            )
    pull = coefficients[1]
    if anchor is None and not (isinstance(pull, (int, float)) and pull == 0.0):
        raise ValueError(f"{operation}: without an anchor, pull must be 0.0, got {pull}")


def coefficient_table(coefficients: tuple[Coefficient, ...], x: Tensor) -> Tensor | None:
    """Return the coefficients as (4, batch) in x's dtype if any is a tensor, else None."""
    if not any(isinstance(c, Tensor) for c in coefficients):
        return None
    # Numbers are filled in on the device: CUDA graphs cannot capture copies from the host.
    rows = [c.to(x) if isinstance(c, Tensor) else x.new_full((), c) for c in coefficients]
    return torch.stack([row.expand(x.shape[0]) for row in rows])


def kernel_coefficients(
    coefficients: tuple[Coefficient, ...], x: Tensor
) -> tuple[Tensor | None, tuple[float, ...]]:
    """Return the `coefficient_table` or None, and four numbers that kernels read without one."""
    table = coefficient_table(coefficients, x)
    # Only without tensors are all coefficients numbers.
    return table, coefficients if table is None else (0.0,) * 4  # type: ignore[return-value]
