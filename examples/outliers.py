"""Detect outliers by a model's log-density.

    python examples/outliers.py --out DIR
    python examples/outliers.py --model RUN --data idx:FOLDER --other digits --out DIR

Held-out images are compared with another data set, uniform noise and means of two held-out images.
The scores are the model's log-density at each level, its means over levels, and a Gaussian with
the training images' mean and covariance; the table shows their AUROC.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from cdrl_fast import CDRL, Sampler
from cdrl_fast.data import load_data
from cdrl_fast.metrics import GaussianBaseline, auroc
from cdrl_fast.sampling.scoring import LevelStatistics

HELD_OUT = {"digits": 0.2}
"""The share held out from training; of other data sets it is a seventh."""
MAX_IMAGES = 5000
"""The maximum number of images of each kind."""


def images(name: str, size: int, held_out: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the training and held-out images of a data set, resized to ``size``."""
    data = load_data(name, image_size=size)
    train, rest = data.split(held_out or HELD_OUT.get(name, 1 / 7))
    return tuple(part.batch(range(min(len(part), 4 * MAX_IMAGES)))[0] for part in (train, rest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--held-out", type=float)
    parser.add_argument("--other", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = CDRL.from_pretrained(options.model)
    size = model.sample_shape[-1]
    train, held_out = images(options.data, size, options.held_out)
    held_out = held_out[:MAX_IMAGES]
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(len(held_out), generator=generator)
    kinds = {
        "other data": images(options.other, size)[1][:MAX_IMAGES],
        "uniform noise": torch.rand(held_out.shape, generator=generator) * 2 - 1,
        "means of two": (held_out + held_out[pairs]) / 2,
    }
    sampler, gaussian = Sampler(model), GaussianBaseline(train)
    all_levels = range(1, model.schedule.levels + 1)
    statistics = sampler.level_statistics(train[:MAX_IMAGES])
    densities = {
        name: torch.stack([sampler.log_density(x, levels=(t,)) for t in all_levels])
        for name, x in {"held-out": held_out, **kinds}.items()
    }
    averages = [tuple(range(1, last + 1)) for last in all_levels if last > 1]
    scores = {f"level {t}": lambda d, t=t: d[t - 1] for t in all_levels}
    scores |= {f"levels 1 to {a[-1]}": lambda d, a=a: average(statistics, a, d) for a in averages}
    table = {
        name: {kind: auroc(score(densities["held-out"]), score(densities[kind])) for kind in kinds}
        for name, score in scores.items()
    }
    normal = gaussian.log_density(held_out)
    table["Gaussian"] = {kind: auroc(normal, gaussian.log_density(x)) for kind, x in kinds.items()}
    print("| score |", " | ".join(kinds), "|")
    for name, row in table.items():
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in row.values()), "|")
    command = shlex.join(["python", *sys.argv])
    record = {"command": command, "model": options.model, "data": options.data}
    record |= {"other": options.other, "auroc": table}
    (options.out / f"outliers-{Path(options.model).name}.json").write_text(
        json.dumps(record, indent=2) + "\n"
    )
    draw(densities, options.out / "outliers.png")


def average(statistics: LevelStatistics, levels: tuple[int, ...], densities: Tensor) -> Tensor:
    """Return the standardised mean of the densities at these levels, which start at 1."""
    return statistics.score(levels, densities[: len(levels)])


def draw(densities: dict[str, Tensor], path: Path) -> None:
    """Draw histograms of the log-densities at level 1."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 2.6))
    low = min(float(d[0].quantile(0.05)) for d in densities.values())
    high = max(float(d[0].max()) for d in densities.values())
    for name, values in densities.items():
        axis.hist(values[0].clamp_min(low), bins=60, range=(low, high), alpha=0.6, label=name)
    axis.set(xlabel="log p(x) up to a constant, level 1", yticks=[])
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
