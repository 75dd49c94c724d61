"""Quality of a model's samples, compared with its training data."""

from __future__ import annotations

import time
from typing import Unpack

import numpy as np
from torch import Tensor

from cdrl_fast import metrics
from cdrl_fast.data import Dataset
from cdrl_fast.metrics.distances import extracted, frechet
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.request import SampleOptions
from cdrl_fast.sampling.sampler import Sampler

BATCH = 250


class Judge:
    """Comparison of samples with data: images by a network's features, points by their values.

    Args:
        data: the data that samples are compared with.
        extractor: the network whose features of images are compared; by default a classifier
            trained on ``data``, which must have labels.

    Raises:
        DataError: images without labels and no ``extractor``.
    """

    def __init__(self, data: Dataset, extractor: metrics.FeatureExtractor | None = None) -> None:
        self.real = data.batch(np.arange(len(data)))[0]
        self.extractor = extractor
        if data.is_images:
            self.extractor = extractor or metrics.train_classifier(data)
            self._features = extracted(self.real, self.extractor)

    @property
    def classifier(self) -> metrics.Classifier | None:
        """The extractor if it is a classifier, else None."""
        return self.extractor if isinstance(self.extractor, metrics.Classifier) else None

    def distance(self, samples: Tensor) -> float:
        """Return images' Fréchet distance in features, or points' sliced Wasserstein distance."""
        if self.extractor is None:
            return metrics.sliced_wasserstein(self.real, samples)
        return frechet(self._features, extracted(samples, self.extractor))

    def figures(self, samples: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """Return all figures of a set of samples.

        Args:
            samples: images (n, C, H, W) or points (n, 2).
            label: the classes that images were drawn with, int64 (n,).

        Returns:
            Images: "frechet" and, with ``label``, "accuracy", the share that the classifier
            assigns to its label. Points of the checkerboard: "sliced_wasserstein", "inside", the
            share inside the squares, and "smallest_share" and "largest_share", of a square
            relative to 1/8.
        """
        if self.extractor is None:
            inside, shares = metrics.checkerboard_shares(samples.numpy())
            return {
                "sliced_wasserstein": self.distance(samples),
                "inside": inside,
                "smallest_share": float(shares.min() * 8),
                "largest_share": float(shares.max() * 8),
            }
        accuracy: dict[str, float] = {}
        if label is not None and self.classifier is not None:
            accuracy["accuracy"] = metrics.label_accuracy(samples, label, self.classifier)
        return {**accuracy, "frechet": self.distance(samples)}


def measure(
    sampler: Sampler, judge: Judge, samples: int, **options: Unpack[SampleOptions]
) -> dict[str, float]:
    """Draw samples, cycled over the classes; return `Judge.figures` and the sampling "seconds".

    Args:
        sampler: draws the samples.
        judge: measures them.
        samples: number of samples.
        options: other arguments of `SampleRequest`.
    """
    label = cycled_classes(sampler.model, samples)
    settings: SampleOptions = {"batch_size": BATCH, "label": label, **options}
    start = time.perf_counter()
    drawn = sampler.sample(samples, **settings).cpu()
    seconds = time.perf_counter() - start
    return {**judge.figures(drawn, label), "seconds": seconds}


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
    judge: Judge | None = None,
) -> dict[str, float]:
    """Measure the quality of a model's samples.

    For images, the figures are those of `metrics.evaluate_images` on samples drawn without a
    label. A conditional model gets, for each guidance weight w, two more figures of samples
    cycled over the classes: "accuracy_w…", the share that a classifier trained on ``train``
    assigns to its class, and "frechet_w…", the Fréchet distance. For points of the checkerboard,
    the figures are the share inside the squares, the smallest and the largest square's share
    relative to 1/8, and the sliced Wasserstein distance.

    Args:
        model: the model, on the device to sample on.
        train: the model's training data.
        held_out: data of the same kind that the model was not trained on; required for images.
        samples: number of samples per figure.
        guidance: weights of classifier-free guidance for accuracy and Fréchet distance.
        steps, seed, progress: as in `Sampler.sample`.
        judge: the comparison with ``train``, if it exists already, to save its cost.

    Returns:
        Figures by name, and "seconds", the time of sampling.

    Raises:
        ValueError: images without ``held_out``, or classes in another order than the model's.
        DataError: images without labels.
        ValueError, TypeError: as `Sampler.sample`.

    Examples:
        >>> from cdrl_fast import CDRL
        >>> from cdrl_fast.data import load_data
        >>> from cdrl_fast.evaluation.judge import evaluate
        >>> model, data = CDRL.from_pretrained("checkerboard"), load_data("checkerboard")
        >>> evaluate(model, data, None, samples=200, steps=1)["inside"] > 0.5
        True
    """
    if model.is_image and held_out is None:
        raise ValueError("held_out: expected held-out data for a model of images, got None")
    model.check_class_names(train.classes, train.name)
    judge = judge or Judge(train)
    sampler = Sampler(model)
    options: SampleOptions = {
        "steps": steps, "seed": seed, "progress": progress, "batch_size": BATCH,
    }  # fmt: skip
    if held_out is None or not model.is_image:
        return measure(sampler, judge, samples, **options)
    start = time.perf_counter()
    drawn = sampler.sample(samples, **options).cpu()
    seconds = time.perf_counter() - start
    assert judge.classifier is not None
    images, labels = held_out.batch(np.arange(len(held_out)))
    figures: dict[str, float] = {}
    if model.num_classes and labels is not None:
        figures["classifier_accuracy"] = metrics.label_accuracy(images, labels, judge.classifier)
        for weight in guidance:
            settings: SampleOptions = {**options, "guidance": weight}
            guided = measure(sampler, judge, samples, **settings)
            seconds += guided.pop("seconds")
            figures |= {f"{name}_w{weight:g}": value for name, value in guided.items()}
    figures |= metrics.evaluate_images(drawn, judge.real, images, judge.classifier)
    return {**figures, "seconds": seconds}
