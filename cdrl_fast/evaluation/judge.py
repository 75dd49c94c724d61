"""How good a model's samples are, against the data it was trained on."""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor

from cdrl_fast import metrics
from cdrl_fast.data import Dataset
from cdrl_fast.metrics.distances import extracted, frechet
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.sampler import Sampler

BATCH = 250


class Judge:
    """Compares samples with data: images in a network's features, points as they are.

    Args:
        data: what samples should look like.
        extractor: the network whose features of images are compared; by default a classifier
            trained on ``data``, which needs labels.

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
        """The extractor where it tells classes apart."""
        return self.extractor if isinstance(self.extractor, metrics.Classifier) else None

    def distance(self, samples: Tensor) -> float:
        """Fréchet distance of images' features, sliced Wasserstein distance of points."""
        if self.extractor is None:
            return metrics.sliced_wasserstein(self.real, samples)
        return frechet(self._features, extracted(samples, self.extractor))

    def figures(self, samples: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """All figures of one set of samples.

        Returns:
            Images: "frechet" and, of samples asked for by ``label``, "accuracy", the share that the
            classifier recognises. Points of the checkerboard: "sliced_wasserstein", "inside", the
            share inside its squares, and "smallest_share" and "largest_share", of a square
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
        recognised: dict[str, float] = {}
        if label is not None and self.classifier is not None:
            recognised["accuracy"] = metrics.label_accuracy(samples, label, self.classifier)
        return {**recognised, "frechet": self.distance(samples)}


def measure(
    sampler: Sampler,
    judge: Judge,
    samples: int,
    *,
    steps: Steps = None,
    guidance: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """`Judge.figures` of fresh samples, classes in turn, and the "seconds" of sampling."""
    label = cycled_classes(sampler.model, samples)
    start = time.perf_counter()
    drawn = sampler.sample(
        samples,
        label=label,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch_size=BATCH,
        progress=progress,
    ).cpu()
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
    """Measures samples of a model.

    Images: the metrics of `metrics.evaluate_images` on samples drawn without a label, and of a
    conditional model, at each guidance weight, the share of ``samples`` recognised as the class
    asked for by a classifier trained on ``train``, and their Fréchet distance, classes in turn.
    Points of the checkerboard: the share inside the squares, the smallest and largest square's
    share relative to 1/8, and the sliced Wasserstein distance.

    Args:
        model: sampled where it is.
        train: what the model was trained on.
        held_out: data of the same kind that it was not trained on; needed for images.
        samples: how many samples each figure rests on.
        guidance: classifier-free weights at which accuracy is measured.
        steps, seed, progress: as in `Sampler.sample`.
        judge: of ``train``; made here where there is none.

    Returns:
        Figures by name, "seconds" being the time spent in sampling.

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
        raise ValueError("evaluate: images need held-out data to compare with")
    model.check_class_names(train.classes, train.name)
    judge = judge or Judge(train)
    sampler = Sampler(model)
    if held_out is None or not model.is_image:
        return measure(sampler, judge, samples, steps=steps, seed=seed, progress=progress)
    start = time.perf_counter()
    drawn = sampler.sample(
        samples, batch_size=BATCH, steps=steps, seed=seed, progress=progress
    ).cpu()
    seconds = time.perf_counter() - start
    assert judge.classifier is not None
    everything, real_labels = held_out.batch(np.arange(len(held_out)))
    figures: dict[str, float] = {}
    if model.num_classes and real_labels is not None:
        figures["classifier_accuracy"] = metrics.label_accuracy(
            everything, real_labels, judge.classifier
        )
        for weight in guidance:
            found = measure(
                sampler, judge, samples, steps=steps, guidance=weight, seed=seed, progress=progress
            )
            seconds += found.pop("seconds")
            figures |= {f"{name}_w{weight:g}": value for name, value in found.items()}
    figures |= metrics.evaluate_images(drawn, judge.real, everything, judge.classifier)
    return {**figures, "seconds": seconds}
