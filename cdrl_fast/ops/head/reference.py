"""Reference of `head` in plain torch."""

from __future__ import annotations

from torch import Tensor


def head(a: Tensor, rows: Tensor, scale: float, out: Tensor, gradient: Tensor | None) -> None:
    """Write the energies into ``out`` and their gradient into ``gradient`` unless that is None."""
    positive = a > 0
    out.copy_((a.where(positive, 0.0).to(rows.dtype).sum(dim=(1, 2)) * rows).sum(dim=1))
    if gradient is not None:
        gradient.copy_((scale * rows[:, None, None, :]).where(positive, 0.0))
