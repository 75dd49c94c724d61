"""Complete held-out images with missing parts, and count the completions of the right class.

    python examples/inpainting.py --model digits --data digits --out runs/inpainting

A classifier trained on the training images predicts the class of each completion; known pixels are
those of the image. The baseline takes the unknown pixels from the nearest neighbour: the training
image closest in the known pixels. Completions use the label only in the rows that say so. The last
two columns count the images for which only the completion, or only the nearest neighbour, has the
right class. Writes ``figures.json`` and a picture: known pixels, five completions, the image.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl_fast import CDRL, Sampler, metrics
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.report import completion_grid
from cdrl_fast.sampling.masks import known_mask

MASKS = ("lower-half", "random:0.75")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"noise": "shared"},
    {"noise": "fresh"},
    {"noise": "shared", "steps": 60},
    {"noise": "fresh", "steps": 60},
    {"noise": "shared", "passes": 4},
    {"noise": "fresh", "passes": 4},
    {"noise": "shared", "passes": 16},
    {"noise": "shared", "correctors": 60},
    {"noise": "shared", "label": True},
    {"noise": "fresh", "label": True},
)


def cost(setting: dict[str, Any]) -> float:
    """Return the cost of a setting relative to one pass with 15 steps per level."""
    steps = setting.get("steps", 15) + setting.get("correctors", 0)
    return float(setting.get("passes", 1) * steps / 15)


def nearest_completion(images: Tensor, known: Tensor, train: Tensor) -> Tensor:
    """Return images with the unknown pixels of the training image closest in the known ones."""
    rows, nearest = train.flatten(1), []
    for batch, part in zip(images.split(500), known.expand_as(images).split(500), strict=True):
        mask = part.flatten(1).to(images.dtype)
        # ‖known (a - b)‖² without the term that is the same for all training images.
        distances = mask @ (rows * rows).T - 2 * (mask * batch.flatten(1)) @ rows.T
        nearest.append(distances.argmin(dim=1))
    return torch.where(known, images, train[torch.cat(nearest)])


def measure(
    sampler: Sampler,
    images: Tensor,
    labels: Tensor,
    known: Tensor,
    classifier: metrics.Classifier,
    setting: dict[str, Any],
    seeds: int,
    nearest_right: Tensor,
) -> dict[str, Any]:
    """Return the accuracy of the completions, per seed and on average, and the seconds per seed.

    ``only_this`` and ``only_nearest`` are the numbers of images per seed for which only the
    completion, or only the nearest neighbour, has the right class.
    """
    options = {**setting, "label": labels} if setting.get("label") else setting
    start, right_by_seed = time.perf_counter(), []
    for seed in range(seeds):
        completions = sampler.inpaint(images, known, seed=seed, batch_size=512, **options).cpu()
        right_by_seed.append(classifier.predict(completions) == labels)
    right = torch.stack(right_by_seed)
    return {
        "accuracy": float(right.double().mean()),
        "accuracies": right.double().mean(dim=1).tolist(),
        "only_this": float((right & ~nearest_right).sum() / seeds),
        "only_nearest": float((nearest_right & ~right).sum() / seeds),
        "seconds": (time.perf_counter() - start) / seeds,
    }


def table(
    sampler: Sampler, train: Dataset, held_out: Dataset, seeds: int, settings: Any
) -> list[dict[str, Any]]:
    """Return one row per mask and setting; print each as soon as it is measured."""
    classifier = metrics.train_classifier(train)
    images, labels = held_out.batch(np.arange(len(held_out)))
    assert labels is not None
    rows: list[dict[str, Any]] = []

    def add(mask: str, name: str, figures: dict[str, Any]) -> None:
        rows.append({"mask": mask, "completion": name, **figures})
        counts = [f"{figures[k]:6.1f}" for k in ("only_this", "only_nearest") if k in figures]
        print(f"{mask:12s} {name:40s} {100 * figures['accuracy']:6.1f} %", *counts, flush=True)

    add("none", "the images", {"accuracy": metrics.label_accuracy(images, labels, classifier)})
    for mask in MASKS:
        known = known_mask(mask, len(images), images.shape[2:])
        nearest = nearest_completion(images, known, train.batch(np.arange(len(train)))[0])
        nearest_right = classifier.predict(nearest) == labels
        add(mask, "nearest neighbour", {"accuracy": float(nearest_right.double().mean())})
        for setting in settings:
            if setting.get("label") and sampler.model.num_classes == 0:
                continue
            name = ", ".join(f"{key} {value}" for key, value in setting.items())
            name = name.replace("label True", "label given")
            figures = measure(
                sampler, images, labels, known, classifier, setting, seeds, nearest_right
            )
            add(mask, name, figures)
    return rows


def picture(sampler: Sampler, held_out: Dataset, path: Path, passes: int) -> None:
    """Save four images per mask: known pixels, five completions, the image."""
    images, _ = held_out.batch(np.arange(8))
    known = torch.cat([known_mask(mask, 8, images.shape[2:])[i::2] for i, mask in enumerate(MASKS)])
    images = torch.cat([images[0::2], images[1::2]])
    completions = sampler.inpaint(images, known, samples=5, passes=passes).cpu()
    completion_grid(images, known, completions, truth=True).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--held-out", type=float, default=0.2, help="share held out from training")
    parser.add_argument("--images", type=int, default=None, help="held-out images at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--most-cost",
        type=int,
        default=16,
        help="leave out settings that cost more than this many plain chains",
    )
    parser.add_argument("--candidates", type=int, nargs="*", default=[10], help="with 2 passes")
    parser.add_argument("--device", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/inpainting"))
    options = parser.parse_args()
    train, held_out = load_data(options.data).split(options.held_out)
    sampler = Sampler(CDRL.from_pretrained(options.model), device=options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [s for s in SETTINGS if cost(s) <= options.most_cost]
    settings += [{"candidates": n, "passes": 2, "steps": 5} for n in options.candidates]
    picture(sampler, held_out, options.out / "inpainting.png", max(1, options.most_cost))
    if options.images is not None:
        held_out = held_out.subset(np.arange(min(options.images, len(held_out))))
    rows = table(sampler, train, held_out, options.seeds, settings)
    command = shlex.join(["python", *sys.argv])
    record = {"command": command, "model": options.model, "data": options.data}
    record |= {"seeds": options.seeds, "images": len(held_out), "rows": rows}
    record |= {"precision": sampler.precision.name}
    (options.out / "figures.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{options.out}: figures.json, inpainting.png")


if __name__ == "__main__":
    main()
