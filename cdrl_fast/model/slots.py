"""Slots: the terms of which a model or a combination of densities consists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from cdrl_fast.model.cdrl import CDRL

DrawComponents = Callable[[int, Tensor], Tensor]
"""Function of a mixture's number and its cumulative weights; returns the index of each sample's
component, int64 (n,)."""


@dataclass(frozen=True)
class Slot:
    """Term of a combination: weight · log p(·|label), with share · the initializer's mean.

    Attributes:
        model: the model of p and of the initializer.
        label: a class index, or one per sample; 0 means "no label"; None for an unconditional
            model.
        weight: factor of the log-density, one number or one per sample.
        share: factor of the initializer's mean, one number or one per sample.
    """

    model: CDRL
    label: int | Tensor | None
    weight: float | Tensor = 1.0
    share: float | Tensor = 1.0

    def scaled(self, weight: float, share: float) -> Slot:
        """Return the term with its factors multiplied by ``weight`` and ``share``."""
        return replace(self, weight=self.weight * weight, share=self.share * share)
