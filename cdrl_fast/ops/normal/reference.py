"""Reference of `normal`: Philox4x32-10 and Box–Muller in plain torch, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_fast.ops import philox


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    draw: int,
    first_sample: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normals, computed in float64 from float32 uniforms and rounded to ``dtype``.

    Arguments as in `cdrl_fast.normal`.
    """
    elements = math.prod(shape[1:])
    integers = philox.uint32s(
        shape[0], elements, seed=seed, draw=draw, first_sample=first_sample, device=device
    )
    return philox.box_muller(integers).flatten(1)[:, :elements].to(dtype).reshape(tuple(shape))
