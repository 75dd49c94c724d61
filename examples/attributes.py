"""Combine two models of digits: one conditional on the class, one on an attribute.

    python examples/attributes.py --attribute stroke --out DIR

The second model is trained here. With ``--attribute stroke`` its labels are light, medium and
heavy: the third of its class that an image's ink falls into. With ``flip`` they are as written and
mirrored, and the model of classes is trained here on both orientations too. Samples are then drawn
from p(x|class) p(x|attribute) / p(x). Two classifiers that were trained on real images count the
samples with the right class and with the right attribute, next to each model alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdrl_fast import CDRL, Density, Sampler, Trainer, conditional, guided, product, report
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.metrics import label_accuracy, train_classifier
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.recipe import load_recipe

STROKES = ("light", "medium", "heavy")
ORIENTATIONS = ("as written", "mirrored")
ASYMMETRIC = ("2", "3", "4", "5", "6", "7", "9")
"""The digits whose mirror images cannot be taken for images as written."""
DensityOf = Callable[[str, str], Density]
"""A function from digit and attribute value to a density."""


def by_stroke(data: Dataset, train: Dataset) -> Dataset:
    """Return the images labelled by the third of their class in ``train`` that their ink is in."""
    assert data.labels is not None
    assert train.labels is not None
    ink = data.values.sum(axis=(1, 2, 3))
    labels = np.zeros(len(data), dtype=np.int64)
    for index in np.unique(train.labels):
        train_ink = train.values[train.labels == index].sum(axis=(1, 2, 3))
        edges = np.quantile(train_ink, [1 / 3, 2 / 3])
        in_class = data.labels == index
        labels[in_class] = 1 + np.searchsorted(edges, ink[in_class])
    return Dataset("strokes", data.values, labels, STROKES, data.maximum)


def with_mirrored(data: Dataset) -> Dataset:
    """Return the images followed by their mirror images, labelled by digit."""
    assert data.labels is not None
    values = np.concatenate([data.values, data.values[..., ::-1]])
    return Dataset("with mirrored", values, np.tile(data.labels, 2), data.classes, data.maximum)


def by_orientation(data: Dataset) -> Dataset:
    """Return the images followed by their mirror images, labelled by orientation."""
    values, n = with_mirrored(data).values, len(data)
    return Dataset("orientations", values, np.repeat([1, 2], n), ORIENTATIONS, data.maximum)


def only(data: Dataset, digits: tuple[str, ...]) -> Dataset:
    """Return the images of these digits."""
    assert data.labels is not None
    labels = [data.classes.index(digit) + 1 for digit in digits]
    return data.subset(np.flatnonzero(np.isin(data.labels, labels)))


@dataclass(frozen=True)
class Attribute:
    """An attribute of digits, and the data for its model and its classifier.

    Attributes:
        digits: the digits that have the attribute.
        names: the names of its values.
        drawn: the labels of the two values that samples are drawn with.
        of_class: images labelled by digit that the model of classes is trained on here; None: the
            pretrained model of digits is used.
        training: images labelled by the attribute that its model is trained on.
        clear: images with one of the values ``drawn``, to train the classifier.
        held_out: images with one of the values ``drawn``, to test the classifier.
    """

    digits: tuple[str, ...]
    names: tuple[str, ...]
    drawn: tuple[int, int]
    of_class: Dataset | None
    training: Dataset
    clear: Dataset
    held_out: Dataset

    @classmethod
    def stroke(cls, train: Dataset, held_out: Dataset) -> Attribute:
        """Return light against heavy strokes; medium ones are ambiguous."""

        def clear(data: Dataset) -> Dataset:
            labelled = by_stroke(data, train)
            return labelled.subset(np.flatnonzero(labelled.labels != 2))

        training = by_stroke(train, train)
        return cls(train.classes, STROKES, (1, 3), None, training, clear(train), clear(held_out))

    @classmethod
    def flip(cls, train: Dataset, held_out: Dataset) -> Attribute:
        """Return digits as written against mirrored ones."""
        clear = [by_orientation(only(data, ASYMMETRIC)) for data in (train, held_out)]
        training = by_orientation(train)
        return cls(ASYMMETRIC, ORIENTATIONS, (1, 2), with_mirrored(train), training, *clear)


def train_model(data: Dataset, out: Path, iterations: int, start: CDRL | None) -> CDRL:
    """Return a model trained on ``data``, from matching weights of ``start``; resume a run."""
    recipe = load_recipe("digits")
    config = replace(recipe.training, label_drop=0.2)
    if checkpoints_of(out):
        trainer = Trainer.resume(out, data, config=config)
    else:
        model = recipe.model.build(data)
        if start is not None:
            model.warm_start(start)
        trainer = Trainer(model, data, config)
    trainer.fit(iterations, folder=out, progress=True)
    return trainer.ema


def combine(
    digits: CDRL, second: CDRL, class_weight: float, weight: float, digit: str, value: str
) -> Density:
    """Return the density p(x|digit) p(x|value)^(1+w) / p(x)^(1+w).

    The base p(x) is that of the second model. p(x|digit) is guided with ``class_weight`` by the
    first model's p(x).
    """
    of_digit = guided(conditional(digits, digit), digits, class_weight)
    of_value = guided(conditional(second, value), second, weight)
    return product(of_digit, of_value, base=second)


def draw_samples(
    attribute: Attribute, density_of: DensityOf, n: int, correctors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return n samples per digit and value drawn, their classes and their attribute labels."""
    parts, classes, values = [], [], []
    for i, digit in enumerate(attribute.digits):
        for j, value in enumerate(attribute.drawn):
            sampler = Sampler(density_of(digit, attribute.names[value - 1]))
            first = (2 * i + j) * n
            parts.append(sampler.sample(n, first_sample=first, correctors=correctors))
            classes += [int(digit) + 1] * n
            values += [value] * n
    return torch.cat(parts), torch.tensor(classes), torch.tensor(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attribute", choices=["stroke", "flip"], default="stroke")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000, help="per model trained here")
    parser.add_argument("--start", help="a model whose weights the training starts from")
    parser.add_argument("--samples", type=int, default=20, help="per digit and attribute value")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--class-weight", type=float, default=0.0, help="of the class guidance")
    parser.add_argument("--correctors", type=int, default=15)
    options = parser.parse_args()
    train, held_out = load_data("digits").split(0.2)
    attribute = getattr(Attribute, options.attribute)(train, held_out)
    start = CDRL.from_pretrained(options.start) if options.start else None
    if attribute.of_class is None:
        digits = CDRL.from_pretrained("digits")
        class_train, class_test = train, held_out
    else:
        digits = train_model(attribute.of_class, options.out / "classes", options.iterations, start)
        class_train = attribute.of_class
        class_test = with_mirrored(only(held_out, attribute.digits))
    second = train_model(attribute.training, options.out / "run", options.iterations, start)
    of_class = train_classifier(class_train)
    of_value = train_classifier(attribute.clear, seed=1)
    rows = {
        "held-out images": [
            label_accuracy(*class_test.batch(range(len(class_test))), of_class),
            label_accuracy(*attribute.held_out.batch(range(len(attribute.held_out))), of_value),
        ]
    }
    densities: dict[str, DensityOf] = {
        "class alone": lambda digit, value: conditional(digits, digit),
        f"{options.attribute} alone": lambda digit, value: conditional(second, value),
    }
    for weight in options.weights:
        densities[f"both, w = {weight:g}"] = partial(
            combine, digits, second, options.class_weight, weight
        )
    for name, density_of in densities.items():
        images, classes, values = draw_samples(
            attribute, density_of, options.samples, options.correctors
        )
        right = of_class.predict(images) == classes, of_value.predict(images) == values
        rows[name] = [float(r.double().mean()) for r in (*right, right[0] & right[1])]
    print(f"| | class | {options.attribute} | both |\n| --- | --- | --- | --- |")
    for name, shares in rows.items():
        cells = [f"{100 * share:.1f} %" for share in shares]
        print(f"| {name} |", " | ".join(cells + [""] * (3 - len(cells))), "|")
    record = {"command": shlex.join(["python", *sys.argv]), "iterations": options.iterations}
    record |= {"correctors": options.correctors, "rows": rows}
    (options.out / f"attributes-{options.attribute}.json").write_text(
        json.dumps(record, indent=2) + "\n"
    )
    report.save_image_grid(images, options.out / "attributes.png", columns=2 * options.samples)


if __name__ == "__main__":
    main()
