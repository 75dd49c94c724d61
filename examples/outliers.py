"""Telling a model's data from other data by its log-density.

    python examples/outliers.py --out DIR
    python examples/outliers.py --model RUN --data idx:FOLDER --other digits --out DIR

Held-out images of the data against another data set, uniform noise and means of two held-out
images: AUROC of the model's log-density at the cleanest level, of its mean over levels, and of a
Gaussian with the training images' mean and covariance.
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
"""Share that training did not see; a seventh of others."""
MOST = 5000
"""Images of each kind, at most."""


def images(name: str, size: int, held_out: float | None = None) -> tuple[Tensor, Tensor]:
    """Training and held-out images of a data set, at a size."""
    data = load_data(name, image_size=size)
    train, rest = data.split(held_out or HELD_OUT.get(name, 1 / 7))
    return tuple(part.batch(range(min(len(part), 4 * MOST)))[0] for part in (train, rest))


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
    train, held = images(options.data, size, options.held_out)
    held = held[:MOST]
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(len(held), generator=generator)
    kinds = {
        "other data": images(options.other, size)[1][:MOST],
        "uniform noise": torch.rand(held.shape, generator=generator) * 2 - 1,
        "means of two": (held + held[pairs]) / 2,
    }
    sampler, gaussian = Sampler(model), GaussianBaseline(train)
    everywhere = range(1, model.schedule.levels + 1)
    statistics = sampler.level_statistics(train[:MOST])
    densities = {
        name: torch.stack([sampler.log_density(x, levels=(t,)) for t in everywhere])
        for name, x in {"held-out": held, **kinds}.items()
    }
    averages = [tuple(range(1, last + 1)) for last in everywhere if last > 1]
    scores = {f"level {t}": lambda d, t=t: d[t - 1] for t in everywhere}
    scores |= {f"levels 1 to {a[-1]}": lambda d, a=a: average(statistics, a, d) for a in averages}
    table = {
        name: {kind: auroc(score(densities["held-out"]), score(densities[kind])) for kind in kinds}
        for name, score in scores.items()
    }
    normal = gaussian.log_density(held)
    table["Gaussian"] = {kind: auroc(normal, gaussian.log_density(x)) for kind, x in kinds.items()}
    print("| score |", " | ".join(kinds), "|")
    for name, row in table.items():
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in row.values()), "|")
    command = shlex.join(["python", *sys.argv])
    made = {"command": command, "model": options.model, "data": options.data}
    made |= {"other": options.other, "auroc": table}
    (options.out / f"outliers-{Path(options.model).name}.json").write_text(
        json.dumps(made, indent=2) + "\n"
    )
    draw(densities, options.out / "outliers.png")


def average(statistics: LevelStatistics, levels: tuple[int, ...], densities: Tensor) -> Tensor:
    """The standardised mean of the first levels' densities."""
    return statistics.score(levels, densities[: len(levels)])


def draw(densities: dict[str, Tensor], path: Path) -> None:
    """Histograms of log-densities at the cleanest level."""
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
