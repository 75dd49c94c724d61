"""When a training iteration is not to be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping

WATCHED = ("energy_grad_norm", "initializer_grad_norm")
FACTOR = 1000.0
"""A norm that many times the usual one is an explosion; spikes of tenfold are usual."""
SETTLED = 100
"""Iterations before the usual is known."""
_MEMORY = 0.99


class Monitor:
    """Knows what gradient norms are usual: an average of their logarithms.

    Attributes:
        state: per name the average of ln(norm), and how many iterations it has seen; JSON-ready.
    """

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        self.state = {name: (float(m), int(n)) for name, (m, n) in (state or {}).items()}

    def complaint(self, log: Mapping[str, float]) -> str | None:
        """Why an iteration's figures are not to be trusted; None where they are."""
        for name, value in log.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        for name in WATCHED:
            mean, seen = self.state.get(name, (0.0, 0))
            if name in log and seen >= SETTLED and _ln(log[name]) > mean + math.log(FACTOR):
                return f"{name} is {log[name]:.3g}, usually about {math.exp(mean):.3g}"
        return None

    def note(self, log: Mapping[str, float]) -> None:
        """Takes the figures of an iteration that was good."""
        for name in WATCHED:
            if name in log:
                mean, seen = self.state.get(name, (0.0, 0))
                # A plain average first, so that the beginning does not count for long.
                weight = max(1.0 / (seen + 1), 1.0 - _MEMORY)
                self.state[name] = (mean + weight * (_ln(log[name]) - mean), seen + 1)


def _ln(value: float) -> float:
    return math.log(max(value, 1e-30))
