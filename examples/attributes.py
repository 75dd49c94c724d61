"""Two models of digits, one that knows classes and one that knows stroke weights, combined.

    python examples/attributes.py --out DIR

The second model is trained here on the same images, labelled by the third of their class that their
ink falls into: light, medium, heavy. Then p(x|class) p(x|stroke) / p(x): what share of the samples
has the class asked for, and what share the stroke, by two classifiers that were trained on real
images; next to each model alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdrl_fast import CDRL, Density, Sampler, Trainer, given, guided, product, report
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.metrics import label_accuracy, train_classifier
from cdrl_fast.model import checkpoints_of
from cdrl_fast.recipe import load_recipe

STROKES = ("light", "medium", "heavy")
Source = Callable[[str, str], Density]
"""From digit and stroke to a density."""


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


def trained(data: Dataset, out: Path, iterations: int) -> CDRL:
    """The model of strokes; a run that is there goes on."""
    recipe = load_recipe("digits")
    config = replace(recipe.training, label_drop=0.2)
    if checkpoints_of(out):
        trainer = Trainer.resume(out, data, config=config)
    else:
        trainer = Trainer(recipe.model.build(data), data, config)
    trainer.fit(iterations, folder=out, progress=True)
    return trainer.ema


def combined(digits: CDRL, strokes: CDRL, weight: float, digit: str, stroke: str) -> Density:
    """p(x|digit) p(x|stroke)^(1+w) / p(x)^(1+w), the base being the second model's p(x)."""
    return product(
        given(digits, digit), guided(given(strokes, stroke), strokes, weight), base=strokes
    )


def drawn(digits: CDRL, source: Source, n: int, correctors: int) -> tuple[Tensor, Tensor, Tensor]:
    """n images of each digit in light and in heavy strokes, and the labels asked for."""
    parts, classes, ends = [], [], []
    assert not isinstance(digits.classes, int)
    for i, digit in enumerate(digits.classes):
        for j, stroke in ((1, "light"), (3, "heavy")):
            sampler = Sampler(source(digit, stroke))
            first = (2 * i + j // 3) * n
            parts.append(sampler.sample(n, first_sample=first, correctors=correctors))
            classes += [i + 1] * n
            ends += [j] * n
    return torch.cat(parts), torch.tensor(classes), torch.tensor(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--samples", type=int, default=20, help="of each class and stroke")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--correctors", type=int, default=15)
    options = parser.parse_args()
    train, held = load_data("digits").split(0.2)
    digits = CDRL.from_pretrained("digits")
    strokes = trained(by_stroke(train, train), options.out / "run", options.iterations)
    of_class = train_classifier(train)
    # Light against heavy: between the two is a matter of taste.
    ends = by_stroke(train, train)
    ends = ends.subset(np.flatnonzero(ends.labels != 2))
    of_stroke = train_classifier(ends, seed=1)
    real, asked = by_stroke(held, train).batch(range(len(held)))
    clear = asked != 2
    everything = held.batch(range(len(held)))
    rows = {
        "held-out images": [
            label_accuracy(*everything, of_class),
            label_accuracy(real[clear], asked[clear], of_stroke),
        ]
    }
    sources: dict[str, Source] = {
        "class alone": lambda digit, stroke: given(digits, digit),
        "stroke alone": lambda digit, stroke: given(strokes, stroke),
    }
    for weight in options.weights:
        sources[f"both, w = {weight:g}"] = partial(combined, digits, strokes, weight)
    for name, source in sources.items():
        images, classes, ends = drawn(digits, source, options.samples, options.correctors)
        right = of_class.predict(images) == classes, of_stroke.predict(images) == ends
        rows[name] = [float(r.double().mean()) for r in (*right, right[0] & right[1])]
    print("| | class | stroke | both |")
    for name, values in rows.items():
        print(f"| {name} |", " | ".join(f"{100 * v:.1f} %" for v in values), "|")
    made = {"iterations": options.iterations, "correctors": options.correctors, "rows": rows}
    (options.out / "attributes-digits.json").write_text(json.dumps(made, indent=2) + "\n")
    report.save_image_grid(images, options.out / "attributes.png", columns=2 * options.samples)


if __name__ == "__main__":
    main()
