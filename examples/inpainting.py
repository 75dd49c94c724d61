"""Complete held-out images of which a part is missing, and count how many show the right class.

    python examples/inpainting.py --model digits --data digits --out runs/inpainting

A classifier trained on the training images tells the class of each completion, in which the known
pixels are the image's own. Next to the completions of nearest neighbours: the unknown pixels of the
training image that is closest in the known ones. No completion is given the label but where the
table says so. The last two columns count images of which only the completion is right, and only
the nearest neighbour's. Writes ``figures.json`` and a picture: what is known, five completions, the
image.
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
    """Steps, those of 15 steps a level in one pass being 1."""
    steps = setting.get("steps", 15) + setting.get("correctors", 0)
    return float(setting.get("passes", 1) * steps / 15)


def nearest_completion(images: Tensor, known: Tensor, train: Tensor) -> Tensor:
    """Each image with the unknown pixels of the training image closest in the known ones."""
    rows, found = train.flatten(1), []
    for held, kept in zip(images.split(500), known.expand_as(images).split(500), strict=True):
        mask = kept.flatten(1).to(images.dtype)
        # ‖known (a - b)‖² less the part that is the same for all training images.
        distances = mask @ (rows * rows).T - 2 * (mask * held.flatten(1)) @ rows.T
        found.append(distances.argmin(dim=1))
    return torch.where(known, images, train[torch.cat(found)])


def measured(
    sampler: Sampler,
    images: Tensor,
    labels: Tensor,
    known: Tensor,
    classifier: metrics.Classifier,
    setting: dict[str, Any],
    seeds: int,
    nearest_right: Tensor,
) -> dict[str, Any]:
    """Accuracy of the completions at each seed, their mean, and seconds a seed.

    And of how many images, a seed, only the completion or only the nearest neighbour's is right.
    """
    options = {**setting, "label": labels} if setting.get("label") else setting
    start, found = time.perf_counter(), []
    for seed in range(seeds):
        completions = sampler.inpaint(images, known, seed=seed, batch_size=512, **options).cpu()
        found.append(classifier.predict(completions) == labels)
    right = torch.stack(found)
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
    """One row a mask and way to complete, printed as they are measured."""
    classifier = metrics.train_classifier(train)
    images, labels = held_out.batch(np.arange(len(held_out)))
    assert labels is not None
    rows: list[dict[str, Any]] = []

    def add(mask: str, name: str, figures: dict[str, Any]) -> None:
        rows.append({"mask": mask, "completion": name, **figures})
        alone = [f"{figures[k]:6.1f}" for k in ("only_this", "only_nearest") if k in figures]
        print(f"{mask:12s} {name:40s} {100 * figures['accuracy']:6.1f} %", *alone, flush=True)

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
            figures = measured(
                sampler, images, labels, known, classifier, setting, seeds, nearest_right
            )
            add(mask, name, figures)
    return rows


def picture(sampler: Sampler, held_out: Dataset, path: Path, passes: int) -> None:
    """Four images with each mask: known pixels, five completions, the image."""
    images, _ = held_out.batch(np.arange(8))
    known = torch.cat([known_mask(mask, 8, images.shape[2:])[i::2] for i, mask in enumerate(MASKS)])
    images = torch.cat([images[0::2], images[1::2]])
    completions = sampler.inpaint(images, known, samples=5, passes=passes).cpu()
    completion_grid(images, known, completions, truth=True).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--held-out", type=float, default=0.2, help="share unseen in training")
    parser.add_argument("--images", type=int, default=None, help="so many of the held-out ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--most-cost",
        type=int,
        default=16,
        help="leave out what takes longer than so many plain chains",
    )
    parser.add_argument("--candidates", type=int, nargs="*", default=[10], help="of 2 passes")
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
    about = {"command": command, "model": options.model, "data": options.data}
    about |= {"seeds": options.seeds, "images": len(held_out), "rows": rows}
    about |= {"precision": sampler.precision.name}
    (options.out / "figures.json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"{options.out}: figures.json, inpainting.png")


if __name__ == "__main__":
    main()
