"""Precision of torch's own float32 convolutions and matrix products, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fp32_precision(
    precision: str, *, deterministic: bool = False, matmul: bool = False
) -> Iterator[None]:
    """Set the precision of torch's float32 convolutions, and restore it at the end of the block.

    Torch computes convolutions in tf32 by default, but matrix products in float32.

    Args:
        precision: "tf32" or "ieee".
        deterministic: exclude the algorithms of cuDNN whose order of summation varies.
        matmul: set the precision of matrix products, too.
    """
    library: Any = torch.backends.cudnn
    matrices: Any = torch.backends.cuda.matmul
    before = library.conv.fp32_precision, library.deterministic, matrices.fp32_precision
    library.conv.fp32_precision = precision
    library.deterministic = deterministic or before[1]
    if matmul:
        matrices.fp32_precision = precision
    try:
        yield
    finally:
        library.conv.fp32_precision, library.deterministic = before[:2]
        if matmul:
            matrices.fp32_precision = before[2]
