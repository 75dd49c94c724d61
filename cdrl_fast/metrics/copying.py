"""Samples next to training and held-out images: copies, and all figures at once."""

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
    """How close samples are to the training images, next to images the model never saw.

    Distances are those of ``nearest_distances`` to the training images.

    Attributes:
        samples_median: median distance of the samples.
        held_out_median: median distance of the held-out images.
        ratio: samples_median / held_out_median.
        threshold: 1st percentile of the held-out images' distances.
        share: the share of samples at ``threshold`` or closer.
    """

    samples_median: float
    held_out_median: float
    ratio: float
    threshold: float
    share: float

    @property
    def copied(self) -> bool:
        """Whether more than 5 % of the samples are closer than 99 % of the held-out images are.

        Samples of a perfect model are distributed as the held-out images, so about 1 % of them are
        that close, and the median would miss a model that copies only now and then. By chance a
        perfect model fails with probability 0.001 for 359 samples and as many held-out images,
        0.015 for 180 and 0.06 for 100. Not every failure is a copy: a model that smooths, or
        prefers typical images, moves towards the training images too, so look at the closest
        pairs.
        """
        return self.share > 0.05


def copying_check(samples: Tensor, train: Tensor, held_out: Tensor) -> CopyingCheck:
    """Tells samples from copies of training images, by their pixels.

    Args:
        samples: (n, C, H, W) in [-1, 1]; some 300 or more, see ``CopyingCheck.copied``.
        train: the images the model was trained on.
        held_out: images from the same source that it was not trained on, without duplicates of
            training images; some 300 or more.

    Raises:
        ValueError: besides the above, half of the held-out images are training images.

    Examples:
        >>> import torch
        >>> from cdrl_fast.metrics import copying_check
        >>> data = torch.rand(60, 1, 4, 4)
        >>> copying_check(data[:20], data[:40], data[40:]).share
        1.0
    """
    check_images(samples=samples, train=train, held_out=held_out)
    own = nearest_distances(samples, train)
    other = nearest_distances(held_out, train).to(own.device)
    samples_median, held_out_median = float(own.quantile(0.5)), float(other.quantile(0.5))
    if held_out_median == 0:
        raise ValueError("held_out must not consist of training images: its median distance is 0")
    threshold = other.quantile(0.01)
    return CopyingCheck(
        samples_median,
        held_out_median,
        samples_median / held_out_median,
        float(threshold),
        float((own <= threshold).double().mean()),
    )


def evaluate_images(
    samples: Tensor, train: Tensor, held_out: Tensor, classifier: Classifier
) -> dict[str, float]:
    """All figures about a set of image samples that need no labels.

    The Fréchet distance is biased upwards, the more so the fewer images enter. ``frechet`` and
    ``frechet_noise`` take all samples and all training images, ``frechet_held_out`` all held-out and
    all training images: 359 and 1,438 on digits split 80:20, which is what a perfect model would
    get with 359 samples. Only with as many samples as held-out images are the two fairly
    compared; more samples can get below the floor. The counts are part of the result.

    Args:
        samples: float32 (n, C, H, W) in [-1, 1], at least 6.
        train: the images that ``samples`` should look like, at least 6.
        held_out: images from the same source that no model saw, at least 2.
        classifier: its features are compared; it may be trained on ``train``.

    Returns:
        ``frechet`` (samples), ``frechet_held_out`` (held_out) and ``frechet_noise`` (standard normal
        noise clipped to [-1, 1]), each against train; ``precision`` and ``recall`` with 5
        neighbours, train being real; ``copying_*``, the attributes of ``CopyingCheck``, and
        ``copied``, 0 or 1; ``samples_count``, ``train_count`` and ``held_out_count``.
    """
    check_images(6, samples=samples, train=train)
    check_images(2, held_out=held_out, train=train)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)).clamp_(-1, 1)
    real, fake, other, random = (
        extracted(x, classifier) for x in (train, samples, held_out, noise)
    )
    check = copying_check(samples, train, held_out)
    return {
        "frechet": frechet(real, fake),
        "frechet_held_out": frechet(real, other),
        "frechet_noise": frechet(real, random),
        "precision": covered_share(fake, real, 5),
        "recall": covered_share(real, fake, 5),
        **{f"copying_{name}": value for name, value in asdict(check).items()},
        "copied": float(check.copied),
        "samples_count": float(len(samples)),
        "train_count": float(len(train)),
        "held_out_count": float(len(held_out)),
    }
