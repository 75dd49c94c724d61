"""Metrics and a baseline for the detection of outliers by scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast._lazy import optional_module


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the area under the receiver operating characteristic of scores.

    It is the probability that a sample of the data has a higher score than an outlier: 0.5 for
    guessing, 1 for perfect detection.

    Args:
        inside: scores (n,) of the data, higher for more typical samples.
        outside: scores (m,) of the outliers.

    Returns:
        The area, from 0 to 1.

    Raises:
        ImportError: scikit-learn is not installed.

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
    """A Gaussian with the mean and covariance of the training data, as a baseline for densities.

    Args:
        images: (n, …), the training data.
        min_variance: added to each variance, so that pixels that are always black have one.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import GaussianBaseline
        >>> images = torch.rand(100, 1, 4, 4)
        >>> GaussianBaseline(images).log_density(images[:3]).shape
        torch.Size([3])
    """

    def __init__(self, images: Tensor, min_variance: float = 1e-3) -> None:
        flat = _flat(images)
        self._mean = flat.mean(axis=0)
        centred = flat - self._mean
        covariance = centred.T @ centred / len(flat) + min_variance * np.eye(flat.shape[1])
        self._eigenvalues, self._eigenvectors = np.linalg.eigh(covariance)

    def log_density(self, images: Tensor) -> Tensor:
        """Return log N(x; mean, Σ) of images (n, …) up to a constant, float64 (n,)."""
        rotated = (_flat(images) - self._mean) @ self._eigenvectors
        return torch.from_numpy(-0.5 * (rotated**2 / self._eigenvalues).sum(axis=1))


def _flat(images: Tensor) -> NDArray[Any]:
    flat: NDArray[Any] = images.double().flatten(1).cpu().numpy()
    return flat
