"""Comparison of samples with training and held-out images: copies, and all metrics at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cdrl_fast.metrics.classifier import Classifier
from cdrl_fast.metrics.distances import (
    check_images,
    covered_share,
    extracted,
    frechet,
    nearest_distances,
)


@dataclass(frozen=True)
class CopyingCheck:
    """The distances of samples to the training images, compared with those of held-out images.

    Distances are the ``nearest_distances`` to the training images.

    Attributes:
        samples_median: median distance of the samples.
        held_out_median: median distance of the held-out images.
        ratio: samples_median / held_out_median.
        threshold: 1st percentile of the held-out images' distances.
        share: the share of samples whose distance is at most ``threshold``.
    """

    samples_median: float
    held_out_median: float
    ratio: float
    threshold: float
    share: float

    @property
    def copied(self) -> bool:
        """Whether more than 5 % of the samples are closer than 99 % of the held-out images.

        Samples of a perfect model are distributed like the held-out images, so about 1 % of them
        are that close. The median would miss a model that copies only occasionally. A perfect
        model fails by chance with probability 0.001 for 359 samples and as many held-out images,
        0.015 for 180 and 0.06 for 100. A failure does not prove copying: a model whose samples are
        smooth or typical is closer to the training images too, so look at the closest pairs.
        """
        return self.share > 0.05


def copying_check(samples: Tensor, train: Tensor, held_out: Tensor) -> CopyingCheck:
    """Check in pixel space whether samples are copies of training images.

    Args:
        samples: (n, C, H, W) in [-1, 1]; n about 300 or more, see ``CopyingCheck.copied``.
        train: the images that the model was trained on.
        held_out: images from the same source that the model was not trained on, without duplicates
            of training images; about 300 or more.

    Returns:
        The medians, the threshold and the share of close samples.

    Raises:
        TypeError: images are not floating point.
        ValueError: images have a wrong shape or non-finite values, a set is empty, or at least
            half of the held-out images are training images.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import copying_check
        >>> data = torch.rand(60, 1, 4, 4)
        >>> copying_check(data[:20], data[:40], data[40:]).share
        1.0
    """
    check_images(samples=samples, train=train, held_out=held_out)
    distances = nearest_distances(samples, train)
    baseline = nearest_distances(held_out, train).to(distances.device)
    samples_median, held_out_median = float(distances.quantile(0.5)), float(baseline.quantile(0.5))
    if held_out_median == 0:
        raise ValueError("held_out must not consist of training images: its median distance is 0")
    threshold = baseline.quantile(0.01)
    return CopyingCheck(
        samples_median,
        held_out_median,
        samples_median / held_out_median,
        float(threshold),
        float((distances <= threshold).double().mean()),
    )


def evaluate_images(
    samples: Tensor, train: Tensor, held_out: Tensor, classifier: Classifier
) -> dict[str, float]:
    """Compute all metrics of image samples that need no labels.

    The Fréchet distance is biased upwards, the more the fewer images there are. A perfect model
    would reach ``frechet_held_out``, the held-out baseline, with as many samples as there are
    held-out images (359 on digits split 80:20). Only at equal counts can the two be compared: a
    larger number of samples can reach a lower distance.

    Args:
        samples: float32 (n, C, H, W) in [-1, 1], at least 6.
        train: the training images, at least 6.
        held_out: images from the same source that the model was not trained on, at least 2.
        classifier: the network whose features are compared; it may be trained on ``train``.

    Returns:
        A dictionary of floats:

        - ``frechet``, ``frechet_held_out`` and ``frechet_noise``: Fréchet distances to ``train``
          of the samples, the held-out images, and standard normal noise clipped to [-1, 1];
        - ``precision`` and ``recall`` of the samples, with 5 neighbours and ``train`` as real set;
        - ``copying_*``: the attributes of ``CopyingCheck``; ``copied``: 0 or 1;
        - ``samples_count``, ``train_count`` and ``held_out_count``.

    Raises:
        TypeError: images are not floating point.
        ValueError: images have a wrong shape or non-finite values, a set has too few images, or
            ``held_out`` consists of training images.
        ImportError: scikit-learn or torchmetrics is not installed.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import Classifier, evaluate_images
        >>> images, untrained = torch.rand(60, 1, 8, 8), Classifier((1, 8, 8), 10).eval()
        >>> metrics = evaluate_images(images[:20], images[:40], images[40:], untrained)
        >>> metrics["precision"], metrics["copied"]
        (1.0, 1.0)
    """
    check_images(6, samples=samples, train=train)
    check_images(2, held_out=held_out, train=train)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
    real, fake, baseline, random = (
        extracted(x, classifier) for x in (train, samples, held_out, noise)
    )
    check = copying_check(samples, train, held_out)
    return {
        "frechet": frechet(real, fake),
        "frechet_held_out": frechet(real, baseline),
        "frechet_noise": frechet(real, random),
        "precision": covered_share(fake, real, 5),
        "recall": covered_share(real, fake, 5),
        **{f"copying_{name}": value for name, value in asdict(check).items()},
        "copied": float(check.copied),
        "samples_count": float(len(samples)),
        "train_count": float(len(train)),
        "held_out_count": float(len(held_out)),
    }
