"""How torch's own convolutions compute, whatever its switches say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fp32_precision(
    name: str, *, repeatable: bool = False, matrices: bool = False
) -> Iterator[None]:
    """For the length of a block, convolutions take float32 as said: "tf32" or "ieee".

    It is theirs alone that torch takes as tf32 unless it is told otherwise.

    Args:
        repeatable: none of cuDNN's algorithms that sum in whatever order programs end.
        matrices: products of matrices, too.
    """
    library: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = library.conv.fp32_precision, library.deterministic, matmul.fp32_precision
    library.conv.fp32_precision = name
    library.deterministic = repeatable or before[1]
    if matrices:
        matmul.fp32_precision = name
    try:
        yield
    finally:
        library.conv.fp32_precision, library.deterministic = before[:2]
        if matrices:
            matmul.fp32_precision = before[2]
