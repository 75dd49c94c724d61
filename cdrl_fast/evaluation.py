"""How good a model's samples are, against the data it was trained on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from cdrl_fast import metrics
from cdrl_fast.data import Dataset
from cdrl_fast.model import CDRL
from cdrl_fast.sampler import Sampler
from cdrl_fast.schedule import Steps


def evaluate(
    model: CDRL,
    train: Dataset,
    held_out: Dataset | None,
    *,
    samples: int = 1000,
    guidance: tuple[float, ...] = (0.0, 1.0),
    steps: Steps = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Measures samples of a model.

    Images: the metrics of `metrics.evaluate_images` on samples drawn without a label, and of a
    conditional model, at each guidance weight, the share of ``samples`` recognised as the class
    asked for by a classifier trained on ``train``, and their Fréchet distance, classes in turn.
    Points of the checkerboard: the share inside the squares and the smallest and largest square's
    share relative to 1/8.

    Args:
        train: what the model was trained on.
        held_out: data of the same kind that it was not trained on; needed for images.
        samples: how many samples each figure rests on.
        guidance: classifier-free weights at which accuracy is measured.
        steps, seed: as in `Sampler.sample`.

    Returns:
        Figures by name, "seconds" being the time spent in sampling.
    """
    sampler = Sampler(model)
    start = time.perf_counter()
    options: dict[str, Any] = {"steps": steps, "seed": seed, "progress": progress}
    drawn = sampler.sample(samples, batch_size=250, **options)
    seconds = time.perf_counter() - start
    if not model.is_image:
        inside, shares = metrics.checkerboard_shares(drawn.numpy())
        return {
            "inside": inside,
            "smallest_share": float(shares.min() * 8),
            "largest_share": float(shares.max() * 8),
            "seconds": seconds,
        }
    if held_out is None:
        raise ValueError("evaluate: images need held-out data to compare with")
    classifier = metrics.train_classifier(train)
    everything, real_labels = held_out.batch(np.arange(len(held_out)))
    real = train.batch(np.arange(len(train)))[0]
    figures: dict[str, float] = {}
    if model.num_classes and real_labels is not None:
        figures["classifier_accuracy"] = metrics.label_accuracy(everything, real_labels, classifier)
        label = torch.arange(samples) % model.num_classes + 1
        for weight in guidance:
            start = time.perf_counter()
            images = sampler.sample(
                samples, label=label, guidance=weight, batch_size=250, **options
            )
            seconds += time.perf_counter() - start
            figures[f"accuracy_w{weight:g}"] = metrics.label_accuracy(images, label, classifier)
            distance = metrics.frechet_distance(real, images, classifier)
            figures[f"frechet_w{weight:g}"] = distance
    figures |= metrics.evaluate_images(drawn, real, everything, classifier)
    return {**figures, "seconds": seconds}
