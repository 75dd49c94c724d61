"""The 3×3 convolutions in the gradient of an energy network."""

from __future__ import annotations

from typing import Any

import torch


def conv3x3_uses(
    batch: int, size: int, c_in: int, c_out: int, dtype: torch.dtype
) -> dict[str, tuple[Any, ...]]:
    """Return, by use, the arguments of a backend's `conv3x3` up to the precision, uninitialised."""
    x = torch.empty(batch, size, size, c_in, dtype=dtype)
    y = torch.empty(batch, size, size, c_out, dtype=dtype)
    weight, transposed = (
        torch.empty(9, *pair, dtype=dtype) for pair in ((c_in, c_out), (c_out, c_in))
    )
    row, rows = torch.empty(1, c_out), torch.empty(batch, c_out)
    residual = torch.empty_like(y)
    signs = torch.empty(c_out // 32, batch * size * size, dtype=torch.int32)
    # out, x, weight, row, residual, signs, signs_out, transposed, residual activated, activate
    uses = {
        "activate": (y, x, weight, row, None, None, signs, False, False, True),
        "activate, rows": (y, x, weight, rows, None, None, signs, False, False, True),
        "residual": (y, x, weight, row, residual, None, signs, False, True, True),
        "plain": (y, x, weight, row, None, None, None, False, False, False),
        "masked": (y, x, transposed, None, None, signs, None, True, False, False),
        "masked residual": (y, x, transposed, None, residual, signs, None, True, False, False),
    }
    if c_in != c_out:  # the gradient of a shortcut
        uses["plain, transposed"] = (y, x, transposed, None, None, None, None, True, False, False)
    return uses
