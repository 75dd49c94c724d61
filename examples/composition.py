"""Compare samples of combined densities with the exact densities, in two dimensions.

    python examples/composition.py --out DIR
    python examples/composition.py --train 1000 --out DIR

The combinations are guidance, a product, a negation and a mixture of Gaussian mixtures. For each
number of corrector steps per level, a histogram of samples is compared with the combined density on
a grid, in total variation distance, next to the distance of as many exact samples. With ``--train``
the combined densities are models that are trained here on samples of the mixtures, for the given
number of iterations each.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast import CDRL, Density, Sampler, Trainer, guided, mixture, negated, product
from cdrl_fast.data import Dataset
from cdrl_fast.training.recipe import load_recipe

from gaussians import GaussianMixture, model_of  # isort: skip

SIDE, BINS, FINE = 5.0, 40, 8
"""Half the side of the square, bins per side, and grid points per side of a bin."""

ROW = GaussianMixture([[-3, 0], [-1, 0], [1, 0], [3, 0]], [0.45] * 4)
COLUMN = GaussianMixture([[-1, -3], [-1, 0], [-1, 3], [1, 1.5]], [0.55] * 4)
ALL = GaussianMixture([[0, 0], [1, 1], [-1, -1]], [2.6, 1.8, 1.8])
PART = GaussianMixture([[-1.5, 1.5], [1.5, -1.5]], [0.8, 0.8])
CORNERS = GaussianMixture([[-2, -2], [-2, 2], [2, -2], [2, 2]], [0.7] * 4)
# The divisor must not have thinner tails than the other densities.
CORNER = GaussianMixture([[2, 2], [0, 0]], [0.9, 2.5], [0.6, 0.4])
WEIGHTS = (0.6, 0.4)

LogDensity = Callable[[Tensor], Tensor]
Combination = Callable[[Callable[[GaussianMixture], CDRL]], Density]
"""A function from a maker of models, which takes a mixture, to the combination of models."""
CASES: dict[str, tuple[Combination, LogDensity]] = {
    "guidance, w = 0.5": (
        lambda model: guided(model(PART), model(ALL), 0.5),
        lambda x: 1.5 * PART.log_density(x) - 0.5 * ALL.log_density(x),
    ),
    "product": (
        lambda model: product(model(ROW), model(COLUMN), base=model(ALL)),
        lambda x: ROW.log_density(x) + COLUMN.log_density(x) - ALL.log_density(x),
    ),
    "negation, w = 0.5": (
        lambda model: negated(model(CORNERS), model(CORNER), 0.5),
        lambda x: 1.5 * CORNERS.log_density(x) - 0.5 * CORNER.log_density(x),
    ),
    "mixture, 3 : 2": (
        lambda model: mixture(model(ROW), model(COLUMN), weights=WEIGHTS),
        lambda x: torch.logaddexp(
            ROW.log_density(x) + np.log(WEIGHTS[0]), COLUMN.log_density(x) + np.log(WEIGHTS[1])
        ),
    ),
}


def trained(energy: GaussianMixture, iterations: int) -> CDRL:
    """Return a model of the checkerboard-small recipe trained on 50,000 samples of a mixture."""
    recipe = load_recipe("checkerboard-small")
    data = Dataset("mixture", energy.sample(50_000).numpy(), None, (), None)
    trainer = Trainer(recipe.model.build(data, seed=0), data, recipe.training)
    trainer.fit(iterations, progress=True)
    return trainer.ema


def bin_probabilities(log_density: LogDensity) -> NDArray[np.float64]:
    """Return the probability of each bin within the square, (BINS, BINS), x first."""
    count = BINS * FINE
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 * SIDE - SIDE
    grid = torch.cartesian_prod(axis, axis)
    density = torch.softmax(log_density(grid), dim=0).view(BINS, FINE, BINS, FINE)
    return density.sum(dim=(1, 3)).numpy()


def histogram(points: Tensor) -> NDArray[np.float64]:
    """Return the share of points in each bin, (BINS, BINS), x first; points outside are in none."""
    x, y = points.double().numpy().T
    edges = np.linspace(-SIDE, SIDE, BINS + 1)
    counts, _, _ = np.histogram2d(x, y, bins=(edges, edges))
    return counts / len(points)


def distance(shares: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the total variation, half the L1 distance; points outside count as error."""
    outside = 1.0 - shares.sum()
    return float(0.5 * (np.abs(shares - expected).sum() + outside))


def exact_sample_distance(expected: NDArray[np.float64], n: int, seed: int = 0) -> float:
    """Return the distance of n exact samples."""
    counts = np.random.default_rng(seed).multinomial(n, expected.ravel())
    return distance(counts.reshape(expected.shape) / n, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--correctors", type=int, nargs="+", default=[0, 15, 60])
    parser.add_argument("--train", type=int, default=0, help="iterations; 0: exact densities")
    options = parser.parse_args()

    @cache
    def model(energy: GaussianMixture) -> CDRL:
        return trained(energy, options.train) if options.train else model_of(energy)

    options.out.mkdir(parents=True, exist_ok=True)
    rows, histograms = [], {}
    columns = " | ".join(f"{c} correctors" for c in options.correctors)
    print(f"| combination | exact samples | {columns} |")
    for name, (combination, log_density) in CASES.items():
        expected = bin_probabilities(log_density)
        row = {
            "combination": name,
            "exact samples": exact_sample_distance(expected, options.samples),
        }
        for correctors in options.correctors:
            begun = time.perf_counter()
            points = Sampler(combination(model)).sample(
                options.samples, steps=options.steps, correctors=correctors
            )
            row[f"{correctors} correctors"] = distance(histogram(points), expected)
            row[f"{correctors} correctors, seconds"] = time.perf_counter() - begun
        rows.append(row)
        histograms[name] = (expected, histogram(points))
        distances = (row[f"{c} correctors"] for c in options.correctors)
        cells = " | ".join(f"{value:.3f}" for value in distances)
        print(f"| {name} | {row['exact samples']:.3f} | {cells} |")
    figures = {"command": shlex.join(["python", *sys.argv]), "samples": options.samples}
    figures |= {"steps": options.steps, "rows": rows}
    kind = "exact"
    if options.train:
        kind, figures["iterations"] = "trained", options.train
    (options.out / f"composition-{kind}.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(histograms, options.out / "composition.png")


def draw(
    histograms: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path
) -> None:
    """Draw the exact probabilities above and the shares of samples below."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(histograms), figsize=(2.4 * len(histograms), 5))
    for column, (name, pair) in enumerate(histograms.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, (label, shares) in enumerate(zip(("exact", "samples"), pair, strict=True)):
            axes[row, column].imshow(shares.T, origin="lower", cmap="magma", vmax=pair[0].max())
            axes[row, column].set(xticks=[], yticks=[])
            if column == 0:
                axes[row, column].set_ylabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
