"""What the tests of data sets share: some pixels, and the check of a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cdrl_fast.data import load_data
from cdrl_fast.errors import DataError

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2], dtype=np.uint8)


def fails(spec: str, *fragments: object, **options: Any) -> None:
    """``load_data`` refuses, and its message holds every fragment."""
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    for fragment in fragments:
        assert str(fragment) in str(caught.value)
