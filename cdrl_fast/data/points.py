"""Points on a checkerboard in the plane: a distribution whose support is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def checkerboard(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw points uniformly from every other square of a 4x4 board on [-8, 8) x [-8, 8).

    The squares have side 4 and contain their lower edges, not their upper ones; the eight used are
    those whose column and row add up to an even number.

    Args:
        n: the number of points.
        seed: the seed of the draw.

    Returns:
        float32 of shape (n, 2).

    Examples:
        >>> from cdrl_fast.data import checkerboard
        >>> checkerboard(1000, seed=0).shape
        (1000, 2)
    """
    rng = np.random.default_rng(seed)
    row, pair = np.divmod(rng.integers(0, 8, n), 2)
    corners = np.stack([2 * pair + row % 2, row], axis=1) * 4.0 - 8.0
    # Multiples of 2^-20 add up exactly in float32, so no point rounds into the next square.
    offsets = rng.integers(0, 2**22, (n, 2)) / 2**20
    return (corners + offsets).astype(np.float32)


def in_checkerboard(points: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the ``checkerboard`` square that each point lies in.

    Args:
        points: real numbers of shape (n, 2); points that are not finite lie in no square.

    Returns:
        int64 of shape (n,): 0 … 7, row by row from the bottom, or -1 outside every square.

    Raises:
        ValueError: ``points`` does not have shape (n, 2).

    Examples:
        >>> from cdrl_fast.data import checkerboard, in_checkerboard
        >>> float(in_checkerboard(checkerboard(1000)).mean()) > 0.99
        True
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (n, 2), got {points.shape}")
    on_board = np.all((points >= -8) & (points < 8), axis=1)
    # Comparing with the edges, unlike dividing by the side, does not round.
    column, row = np.searchsorted([-4, 0, 4], points, side="right").T
    return np.where(on_board & ((column + row) % 2 == 0), 2 * row + column // 2, -1)
