"""The 3×3 convolutions that an energy network's gradient consists of."""

from __future__ import annotations

from typing import Any

import torch


def conv3x3_uses(
    batch: int, size: int, c_in: int, c_out: int, dtype: torch.dtype
) -> dict[str, tuple[Any, ...]]:
    """Return each use's arguments to a backend's `conv3x3`, up to the precision; empty memory."""
    x = torch.empty(batch, size, size, c_in, dtype=dtype)
    y = torch.empty(batch, size, size, c_out, dtype=dtype)
    there, back = (torch.empty(9, *pair, dtype=dtype) for pair in ((c_in, c_out), (c_out, c_in)))
    one, each = torch.empty(1, c_out), torch.empty(batch, c_out)
    residual = torch.empty_like(y)
    words = torch.empty(c_out // 32, batch * size * size, dtype=torch.int32)
    # out, x, weight, row, residual, signs, signs_out, transposed, residual activated, activate
    uses = {
        "activate": (y, x, there, one, None, None, words, False, False, True),
        "activate, rows": (y, x, there, each, None, None, words, False, False, True),
        "residual": (y, x, there, one, residual, None, words, False, True, True),
        "plain": (y, x, there, one, None, None, None, False, False, False),
        "masked": (y, x, back, None, None, words, None, True, False, False),
        "masked residual": (y, x, back, None, residual, words, None, True, False, False),
    }
    if c_in != c_out:  # a shortcut's gradient
        uses["plain, transposed"] = (y, x, back, None, None, None, None, True, False, False)
    return uses
