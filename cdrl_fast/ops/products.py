"""How torch's own convolutions compute, whatever its switches say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def products(name: str, *, repeatable: bool = False) -> Iterator[None]:
    """For the length of a block, convolutions take float32 as said: "tf32" or "ieee".

    It is theirs alone that torch takes as tf32 unless it is told otherwise.

    Args:
        repeatable: none of cuDNN's algorithms that sum in whatever order programs end.
    """
    library: Any = torch.backends.cudnn
    before = library.conv.fp32_precision, library.deterministic
    library.conv.fp32_precision = name
    library.deterministic = repeatable or before[1]
    try:
        yield
    finally:
        library.conv.fp32_precision, library.deterministic = before
