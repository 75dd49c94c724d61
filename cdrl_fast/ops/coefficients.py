"""Coefficients of the Langevin update: numbers, tensors of one element or of one a sample."""

from __future__ import annotations

import torch
from torch import Tensor

Coefficient = float | Tensor

NAMES = ("drift", "pull", "noise_std", "rescale")


def check_coefficients(
    where: str, coefficients: tuple[Coefficient, ...], batch: int, anchor: Tensor | None
) -> None:
    """Raises ValueError where shapes do not fit, or the recovery term has no anchor."""
    for name, value in zip(NAMES, coefficients, strict=True):
        if isinstance(value, Tensor) and value.dim() and value.shape not in ((1,), (batch,)):
            raise ValueError(
                f"{where}: {name} must be a number or have shape ({batch},) or (1,), got "
                f"{tuple(value.shape)}"
            )
    pull = coefficients[1]
    if anchor is None and not (isinstance(pull, (int, float)) and pull == 0.0):
        raise ValueError(f"{where}: without an anchor, pull must be 0.0")


def coefficient_table(coefficients: tuple[Coefficient, ...], x: Tensor) -> Tensor | None:
    """(4, batch) in x's dtype where any coefficient is a tensor."""
    if not any(isinstance(c, Tensor) for c in coefficients):
        return None
    # Numbers are filled in on the device: a captured graph cannot wait for the host's.
    rows = [c.to(x) if isinstance(c, Tensor) else x.new_full((), c) for c in coefficients]
    return torch.stack([row.expand(x.shape[0]) for row in rows])
