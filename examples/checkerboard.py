"""Train CDRL on a 2-D checkerboard, then plot its samples and its log-density at every level.

    python examples/checkerboard.py --out runs/checkerboard

Prints the share of samples inside the eight squares and the share per square, next to those of
exact samples blurred by the noise of one Langevin step: the last step of a chain adds that noise,
and chains of points have no denoising step. A run stopped by Ctrl-C resumes when started again.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from cdrl_fast import Sampler
from cdrl_fast.data import checkerboard, load_data
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.metrics import checkerboard_shares
from cdrl_fast.report import density_figure, scatter_figure
from cdrl_fast.training.recipe import load_recipe
from cdrl_fast.training.trainer import Trainer


def train(out, recipe, iterations):
    """Train by a recipe, or resume the run in ``out``; return the trainer."""
    data = load_data(recipe.data)
    if any((out / "checkpoints").glob("[0-9]*")):
        trainer = Trainer.resume(out, data)
    else:
        model = recipe.model.build(data, recipe.training.seed)
        trainer = Trainer(model, data, recipe.training)
    trainer.fit(
        iterations,
        folder=out,
        progress=True,
        evaluate=lambda t: evaluate(t.ema, data, None, samples=2000),
    )
    return trainer


def plot_density(model, path, points=200, reach=8.0):
    """Draw f(m_t x, λ_{t-1}) / s_t² on a grid: the log-density of x_{t-1} up to a constant."""
    axis = torch.linspace(-reach, reach, points)
    grid = torch.cartesian_prod(axis, axis)
    maps = []
    with torch.no_grad():
        for t in range(1, model.schedule.levels + 1):
            density = model.log_density(grid, t).reshape(points, points)
            maps.append((f"level {t}", density.T.numpy()))
    density_figure(maps, (-reach, reach, -reach, reach)).savefig(path, dpi=100)


def figures(model, samples):
    """Return the shares of the model's samples and of exact samples blurred by one step's noise."""
    noise_std = model.schedule.level(1).noise_std
    exact = checkerboard(samples, seed=1)
    blurred = exact + noise_std * np.random.default_rng(0).standard_normal(exact.shape)
    inside, shares = checkerboard_shares(Sampler(model).sample(samples).numpy())
    return {
        "inside": inside,
        "inside, exact samples blurred by one step's noise": checkerboard_shares(blurred)[0],
        "one step's noise": noise_std,
        "each square's share times 8": [round(float(8 * share), 3) for share in shares],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/checkerboard"))
    parser.add_argument("--recipe", default="checkerboard")
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    trainer = train(options.out, recipe, options.iterations or recipe.iterations)
    record = figures(trainer.ema, options.samples)
    record["seconds of training"] = round(trainer.seconds)
    print(json.dumps(record, indent=2))
    record["command"] = shlex.join(["python", *sys.argv])
    (options.out / "figures.json").write_text(json.dumps(record, indent=2) + "\n")
    samples = Sampler(trainer.ema).sample(5000)
    scatter_figure(samples, "5,000 samples").savefig(options.out / "samples.png", dpi=100)
    plot_density(trainer.ema, options.out / "log-density.png")
    print(f"pictures: {options.out / 'samples.png'}, {options.out / 'log-density.png'}")


if __name__ == "__main__":
    main()
