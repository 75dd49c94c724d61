"""Reference of `pool` and `spread` in plain torch."""

from __future__ import annotations

from torch import Tensor

from cdrl_fast.ops.layout import inverse_leaky, leaky
from cdrl_fast.ops.sign_bits import pack


def pool(a: Tensor, out: Tensor, signs: Tensor | None, mean: Tensor | None) -> None:
    """Write leaky(m) into ``out``; the sign bits m > 0 and m unless their output is None."""
    batch, height, width, channels = out.shape
    m = inverse_leaky(a).reshape(batch, height, 2, width, 2, channels).mean(dim=(2, 4))
    out.copy_(leaky(m))
    if signs is not None:
        signs.copy_(pack(m > 0))
    if mean is not None:
        mean.copy_(m)


def spread(g: Tensor, out: Tensor) -> None:
    """Write g / 4 at each of four pixels into ``out``."""
    out.copy_((0.25 * g).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
