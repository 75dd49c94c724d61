"""How well scores tell data from what it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast._lazy import optional_module


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The chance that a sample of the data scores higher than one from elsewhere.

    The area under the receiver operating characteristic: 0.5 is guessing, 1 is perfect.

    Args:
        inside, outside: scores (n,) and (m,), high ones for the data.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import auroc
        >>> float(auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])))
        1.0
    """
    metrics = optional_module("sklearn.metrics", "scikit-learn", "demo")
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    scores = np.concatenate([inside.double().cpu().numpy(), outside.double().cpu().numpy()])
    return float(metrics.roc_auc_score(truth, scores))


class GaussianBaseline:
    """log N(x; mean, Σ) with the data's mean and covariance: what any density should beat.

    Args:
        images: (n, …), the training data.
        floor: added to the variances, so that pixels that are always black have one.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import GaussianBaseline
        >>> images = torch.rand(100, 1, 4, 4)
        >>> GaussianBaseline(images).log_density(images[:3]).shape
        torch.Size([3])
    """

    def __init__(self, images: Tensor, floor: float = 1e-3) -> None:
        flat = _flat(images)
        self._mean = flat.mean(axis=0)
        centred = flat - self._mean
        covariance = centred.T @ centred / len(flat) + floor * np.eye(flat.shape[1])
        self._values, self._vectors = np.linalg.eigh(covariance)

    def log_density(self, images: Tensor) -> Tensor:
        """Of images (n, …), (n,), up to a constant; float64."""
        white = (_flat(images) - self._mean) @ self._vectors
        return torch.from_numpy(-0.5 * (white**2 / self._values).sum(axis=1))


def _flat(images: Tensor) -> NDArray[Any]:
    result: NDArray[Any] = images.double().flatten(1).cpu().numpy()
    return result
