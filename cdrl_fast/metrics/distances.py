"""Distances between sets of samples, in feature space and in pixel space."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdrl_fast._lazy import optional_module
from cdrl_fast.data import in_checkerboard
from cdrl_fast.metrics.classifier import Classifier


class FeatureExtractor(Protocol):
    """A protocol for anything that turns images into feature vectors, such as a ``Classifier``."""

    def features(self, images: Tensor) -> Tensor:
        """Return the feature vectors of images: (n, C, H, W) → floating point (n, d)."""


def check_images(minimum: int = 1, **images: Tensor) -> None:
    """Check that sets of images are floating point (n, C, H, W), of one image shape and finite.

    Args:
        minimum: the smallest allowed n.
        images: the sets by the names that messages use.

    Raises:
        TypeError: a set is not floating point.
        ValueError: a set has another shape, fewer than ``minimum`` images or non-finite values.
    """
    first, *_ = images.values()
    for name, x in images.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point in [-1, 1], got {x.dtype}")
        if x.ndim != 4 or x.shape[1:] != first.shape[1:]:
            shapes = {key: tuple(value.shape) for key, value in images.items()}
            raise ValueError(f"expected images of one shape (n, C, H, W), got {shapes}")
        if len(x) < minimum:
            raise ValueError(f"{name} must contain at least {minimum} images, got {len(x)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or Inf values")


@torch.no_grad()
def extracted(images: Tensor, extractor: FeatureExtractor, batch_size: int = 1000) -> Tensor:
    """Return the features of all images, float64 (n, d) on the CPU."""
    if isinstance(extractor, nn.Module):
        images = images.to(next(extractor.parameters(), images).device)
    parts = [extractor.features(x) for x in torch.split(images, batch_size)]
    features = torch.cat(parts).to("cpu", torch.float64)
    if features.ndim != 2 or not features.isfinite().all():
        raise ValueError(
            "extractor must return finite features of shape (n, d), got "
            f"{'NaN or Inf values' if features.ndim == 2 else tuple(features.shape)}"
        )
    return features


class _Identity(nn.Module):
    """A feature network for torchmetrics whose inputs are the features themselves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(real: Tensor, fake: Tensor) -> float:
    """Return the Fréchet distance of features, float64 (n, d) and (m, d)."""
    fid = optional_module("torchmetrics.image.fid", "torchmetrics", "demo")
    # No set_dtype(float64): the sums are float64 whenever the features are.
    metric = fid.FrechetInceptionDistance(feature=_Identity(real.shape[1]))
    centre = real.mean(0)  # centring avoids cancellation in the covariances
    metric.update(real - centre, real=True)
    metric.update(fake - centre, real=False)
    return max(0.0, float(metric.compute()))


def frechet_distance(real: Tensor, fake: Tensor, extractor: FeatureExtractor) -> float:
    """Return the Fréchet distance between Gaussians fitted to the features of two sets of images.

        |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))

    with the sample means and the unbiased sample covariances, in float64. Its expectation falls
    as the sets grow, so only distances at the same two counts can be compared.
    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium", NeurIPS 2017; here with ``extractor`` in place of the Inception network.

    Args:
        real: images (n, C, H, W) in [-1, 1], n at least 2.
        fake: images (m, C, H, W) in [-1, 1], m at least 2.
        extractor: a network, or any object, whose ``features`` turns images into vectors.

    Returns:
        The distance, at least 0.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import Classifier, frechet_distance
        >>> images, untrained = torch.rand(200, 1, 8, 8), Classifier((1, 8, 8), 10).eval()
        >>> round(frechet_distance(images, images, untrained), 2)
        0.0
    """
    check_images(2, real=real, fake=fake)
    return frechet(extracted(real, extractor), extracted(fake, extractor))


def covered_share(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Return the share of points within the k-th neighbour distance of some manifold point."""
    search = optional_module("sklearn.neighbors", "scikit-learn", "demo").NearestNeighbors
    distances, _ = search(n_neighbors=neighbours).fit(manifold.numpy()).kneighbors()
    radius = torch.from_numpy(distances[:, -1])
    # By matrix products the distance of a point to itself would not be exactly 0.
    exact = "donot_use_mm_for_euclid_dist"
    covered = [
        (torch.cdist(x, manifold, compute_mode=exact) <= radius).any(1)
        for x in torch.split(points, 1000)
    ]
    return float(torch.cat(covered).double().mean())


def precision_recall(
    real: Tensor, fake: Tensor, extractor: FeatureExtractor, *, neighbours: int = 5
) -> tuple[float, float]:
    """Return improved precision and recall.

    The manifold of a set is the union of balls around its feature vectors; the radius of each ball
    is the distance to the ``neighbours``-th nearest neighbour in the set. Precision is the share
    of ``fake`` on the manifold of ``real`` (are the samples realistic?), recall the share of
    ``real`` on the manifold of ``fake`` (is everything covered?). Both depend on the counts.
    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative
    Models", NeurIPS 2019.

    Args:
        real: images (n, C, H, W) in [-1, 1], n above ``neighbours``.
        fake: images (m, C, H, W) in [-1, 1], m above ``neighbours``.
        extractor: a network, or any object, whose ``features`` turns images into vectors.
        neighbours: k of the k-nearest neighbours, at least 1.

    Returns:
        Precision and recall, each from 0 to 1.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import Classifier, precision_recall
        >>> images, untrained = torch.rand(50, 1, 8, 8), Classifier((1, 8, 8), 10).eval()
        >>> precision_recall(images, images, untrained)
        (1.0, 1.0)
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    check_images(neighbours + 1, real=real, fake=fake)
    real, fake = extracted(real, extractor), extracted(fake, extractor)
    return covered_share(fake, real, neighbours), covered_share(real, fake, neighbours)


def label_accuracy(images: Tensor, labels: Tensor, classifier: Classifier) -> float:
    """Return the share of images that ``classifier`` assigns to the class in ``labels``.

    Args:
        images: float32 (n, C, H, W) in [-1, 1], n at least 1.
        labels: int64 (n,) in 1 … k.
        classifier: a classifier of the k classes.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        TypeError: images are not floating point.
        ValueError: images or labels have a wrong shape or range.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import Classifier, label_accuracy
        >>> images, untrained = torch.zeros(4, 1, 8, 8), Classifier((1, 8, 8), 10).eval()
        >>> float(label_accuracy(images, untrained.predict(images), untrained))
        1.0
    """
    check_images(images=images)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have shape ({len(images)},), one per image, got {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 1 or high > classifier.classes:
        raise ValueError(f"labels must be from 1 to {classifier.classes}, got {low} to {high}")
    predicted = classifier.predict(images).to(labels.device)
    return float((predicted == labels).double().mean())


@torch.no_grad()
def nearest_distances(images: Tensor, reference: Tensor) -> Tensor:
    """Return the L2 pixel distance of each image to the nearest reference image.

    Args:
        images: (n, C, H, W) in [-1, 1], n at least 1.
        reference: (m, C, H, W) in [-1, 1], m at least 1.

    Returns:
        float32 (n,), on the device of ``images``; exactly 0 for an image that is in ``reference``.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import nearest_distances
        >>> data = torch.eye(4).reshape(4, 1, 2, 2)
        >>> [float(d) for d in nearest_distances(data[:2], data)]
        [0.0, 0.0]
    """
    check_images(images=images, reference=reference)
    reference = reference.to(images.device).flatten(1)
    parts = []
    for x in torch.split(images.flatten(1).double(), 500):
        nearest = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        for block in torch.split(reference, 5000):
            index = torch.cdist(x, block.double()).argmin(1)
            # The rounding error of cdist's matrix product would hide exact copies.
            nearest = nearest.minimum((x - block[index].double()).norm(dim=1))
        parts.append(nearest.float())
    return torch.cat(parts)


def sliced_wasserstein(
    real: Tensor, fake: Tensor, *, directions: int = 100, seed: int = 0
) -> float:
    """Return the sliced 2-Wasserstein distance between two sets of points.

        sqrt(mean over directions u of the integral over q in [0, 1] of (R_u(q) - F_u(q))^2)

    R_u and F_u are the quantile functions of the sets' projections on the unit vector u. The
    integral is exact if one count divides the other; otherwise it is a sum over the quantiles of
    the larger set. Its expectation falls as the sets grow, so only distances at the same two
    counts can be compared.
    Source: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", JMIV 2015.

    Args:
        real: finite points (n, d), n at least 1.
        fake: finite points (m, d), m at least 1.
        directions: the number of random unit vectors, at least 1.
        seed: the seed of the unit vectors.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: the sets differ in dimension, one is empty or not finite, or ``directions`` is
            not positive.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import sliced_wasserstein
        >>> points = torch.randn(100, 2)
        >>> float(sliced_wasserstein(points, points))
        0.0
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"expected points (n, d) and (m, d), got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    if not (len(real) and len(fake)):
        raise ValueError(
            f"expected one or more points in each set, got {len(real)} and {len(fake)}"
        )
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("expected finite points, got NaN or Inf coordinates")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(real.shape[1], directions, generator=generator, dtype=torch.float64)
    axes /= axes.norm(dim=0)
    sets = [(x.detach().to("cpu", torch.float64) @ axes).sort(dim=0).values for x in (real, fake)]
    count = max(len(real), len(fake))
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    upper, lower = (x[(quantiles * len(x)).long()] for x in sets)
    return float((upper - lower).square().mean().sqrt())


def checkerboard_shares(points: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
    """Return how points are distributed over the squares of ``cdrl_fast.data.checkerboard``.

    Args:
        points: real numbers of shape (n, 2), n at least 1.

    Returns:
        The share of points in any of the squares (1 for the data), and float64 (8,), each square's
        share of the points inside (1/8 for the data; zeros if no point is inside).

    Raises:
        ValueError: ``points`` is empty or does not have shape (n, 2).

    Examples:
        >>> from cdrl_fast.data import checkerboard
        >>> from cdrl_fast.metrics import checkerboard_shares
        >>> inside, shares = checkerboard_shares(checkerboard(1000))
        >>> inside, len(shares)
        (1.0, 8)
    """
    square = in_checkerboard(points)
    if not len(square):
        raise ValueError("points must contain at least one point, got none")
    counts = np.bincount(square[square >= 0], minlength=8)
    return float((square >= 0).mean()), counts / max(1, int(counts.sum()))
