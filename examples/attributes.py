"""Two models of digits, one that knows classes and one that knows an attribute, combined.

    python examples/attributes.py --attribute stroke --out DIR

The second model is trained here, on images labelled by what the data says of them: with ``stroke``
the third of their class that their ink falls into, light, medium, heavy; with ``flip`` whether they
are mirrored, and then the model of classes is trained on both ways, too. Then
p(x|class) p(x|attribute) / p(x): what share of the samples has the class asked for, and what share
the attribute, by two classifiers that were trained on real images; next to each model alone.
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
WAYS = ("as written", "mirrored")
TELLING = ("2", "3", "4", "5", "6", "7", "9")  # mirrored, the others look as they did
Source = Callable[[str, str], Density]
"""From digit and attribute to a density."""


def by_stroke(data: Dataset, like: Dataset) -> Dataset:
    """The images with the third of their class in ``like`` as label, by total ink."""
    assert data.labels is not None
    assert like.labels is not None
    ink = data.values.sum(axis=(1, 2, 3))
    labels = np.zeros(len(data), dtype=np.int64)
    for index in np.unique(like.labels):
        of_class = like.values[like.labels == index].sum(axis=(1, 2, 3))
        edges = np.quantile(of_class, [1 / 3, 2 / 3])
        mine = data.labels == index
        labels[mine] = 1 + np.searchsorted(edges, ink[mine])
    return Dataset("strokes", data.values, labels, STROKES, data.maximum)


def both_ways(data: Dataset) -> Dataset:
    """The images, then their mirror images, with the digit as label."""
    assert data.labels is not None
    values = np.concatenate([data.values, data.values[..., ::-1]])
    return Dataset("both ways", values, np.tile(data.labels, 2), data.classes, data.maximum)


def by_way(data: Dataset) -> Dataset:
    """The same with the way as label."""
    values, n = both_ways(data).values, len(data)
    return Dataset("ways", values, np.repeat([1, 2], n), WAYS, data.maximum)


def only(data: Dataset, digits: tuple[str, ...]) -> Dataset:
    """The images of these digits."""
    assert data.labels is not None
    wanted = [data.classes.index(digit) + 1 for digit in digits]
    return data.subset(np.flatnonzero(np.isin(data.labels, wanted)))


@dataclass(frozen=True)
class Attribute:
    """What the second model knows, and what tells it in real images.

    Attributes:
        digits: which have it.
        names: its values; ends: those that are asked for, by their label.
        of_class: images with the digit as label, whose model is ``classes``' own where None.
        training: images with the attribute as label, for the model.
        clear: those with one of ``ends``, for the classifier; held_out: the same, to test it.
    """

    digits: tuple[str, ...]
    names: tuple[str, ...]
    ends: tuple[int, int]
    of_class: Dataset | None
    training: Dataset
    clear: Dataset
    held_out: Dataset

    @classmethod
    def stroke(cls, train: Dataset, held: Dataset) -> Attribute:
        """Light against heavy: between the two is a matter of taste."""

        def clear(data: Dataset) -> Dataset:
            labelled = by_stroke(data, train)
            return labelled.subset(np.flatnonzero(labelled.labels != 2))

        training = by_stroke(train, train)
        return cls(train.classes, STROKES, (1, 3), None, training, clear(train), clear(held))

    @classmethod
    def flip(cls, train: Dataset, held: Dataset) -> Attribute:
        parts = [by_way(only(data, TELLING)) for data in (train, held)]
        return cls(TELLING, WAYS, (1, 2), both_ways(train), by_way(train), *parts)


def trained(data: Dataset, out: Path, iterations: int, start: CDRL | None) -> CDRL:
    """A model of ``data``, begun with the weights of ``start`` that fit; a run there goes on."""
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


def combined(
    digits: CDRL, second: CDRL, of_class: float, weight: float, digit: str, value: str
) -> Density:
    """p(x|digit) p(x|value)^(1+w) / p(x)^(1+w), the base being the second model's p(x).

    And the digit guided with a weight of its own, by the first model's p(x).
    """
    of_digit = guided(conditional(digits, digit), digits, of_class)
    of_value = guided(conditional(second, value), second, weight)
    return product(of_digit, of_value, base=second)


def drawn(
    attribute: Attribute, source: Source, n: int, correctors: int
) -> tuple[Tensor, Tensor, Tensor]:
    """n images of each digit and each end of the attribute, and the labels asked for."""
    parts, classes, values = [], [], []
    for i, digit in enumerate(attribute.digits):
        for j, value in enumerate(attribute.ends):
            sampler = Sampler(source(digit, attribute.names[value - 1]))
            first = (2 * i + j) * n
            parts.append(sampler.sample(n, first_sample=first, correctors=correctors))
            classes += [int(digit) + 1] * n
            values += [value] * n
    return torch.cat(parts), torch.tensor(classes), torch.tensor(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attribute", choices=["stroke", "flip"], default="stroke")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000, help="of each model trained here")
    parser.add_argument("--start", help="a model whose weights that training starts from")
    parser.add_argument("--samples", type=int, default=20, help="of each digit and attribute")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--class-weight", type=float, default=0.0, help="of guiding the class")
    parser.add_argument("--correctors", type=int, default=15)
    options = parser.parse_args()
    train, held = load_data("digits").split(0.2)
    attribute = getattr(Attribute, options.attribute)(train, held)
    start = CDRL.from_pretrained(options.start) if options.start else None
    if attribute.of_class is None:
        digits, seen, shown = CDRL.from_pretrained("digits"), train, held
    else:
        digits = trained(attribute.of_class, options.out / "classes", options.iterations, start)
        seen, shown = attribute.of_class, both_ways(only(held, attribute.digits))
    second = trained(attribute.training, options.out / "run", options.iterations, start)
    of_class = train_classifier(seen)
    of_value = train_classifier(attribute.clear, seed=1)
    rows = {
        "held-out images": [
            label_accuracy(*shown.batch(range(len(shown))), of_class),
            label_accuracy(*attribute.held_out.batch(range(len(attribute.held_out))), of_value),
        ]
    }
    sources: dict[str, Source] = {
        "class alone": lambda digit, value: conditional(digits, digit),
        f"{options.attribute} alone": lambda digit, value: conditional(second, value),
    }
    for weight in options.weights:
        sources[f"both, w = {weight:g}"] = partial(
            combined, digits, second, options.class_weight, weight
        )
    for name, source in sources.items():
        images, classes, values = drawn(attribute, source, options.samples, options.correctors)
        right = of_class.predict(images) == classes, of_value.predict(images) == values
        rows[name] = [float(r.double().mean()) for r in (*right, right[0] & right[1])]
    print(f"| | class | {options.attribute} | both |\n| --- | --- | --- | --- |")
    for name, shares in rows.items():
        cells = [f"{100 * share:.1f} %" for share in shares]
        print(f"| {name} |", " | ".join(cells + [""] * (3 - len(cells))), "|")
    made = {"command": shlex.join(["python", *sys.argv]), "iterations": options.iterations}
    made |= {"correctors": options.correctors, "rows": rows}
    (options.out / f"attributes-{options.attribute}.json").write_text(
        json.dumps(made, indent=2) + "\n"
    )
    report.save_image_grid(images, options.out / "attributes.png", columns=2 * options.samples)


if __name__ == "__main__":
    main()
