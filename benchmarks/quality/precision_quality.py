"""Test whether samples in half precision are as good as in float32, by a paired bootstrap.

    python benchmarks/quality/precision_quality.py --model digits --data digits --out FILE

Both precisions use the same seeds and labels, which cycle through the classes. The Fréchet distance
of each set to the training images is computed in the features of a classifier trained on them; the
distribution of the difference comes from resampled pairs. Half precision passes if the upper end of
the 95 % interval of (half - full) is at most a tenth of the held-out baseline: the distance between
training and held-out images.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from cdrl_fast import CDRL, Sampler, about
from cdrl_fast.data import load_data
from cdrl_fast.metrics import train_classifier
from cdrl_fast.metrics.distances import extracted
from cdrl_fast.sampling.label_terms import cycled_classes


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """Return the Fréchet distance of Gaussians fitted to features (n, d) and (m, d)."""
    difference = real.mean(0) - fake.mean(0)
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    # The eigenvalues of a product of two covariances are real and not negative.
    root = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * root)


def compared(
    real: np.ndarray, full: np.ndarray, half: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, float]:
    """Return both distances, and the interval of their difference over resampled pairs."""
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        index = generator.integers(len(full), size=len(full))
        differences.append(frechet(real, half[index]) - frechet(real, full[index]))
    low, high = np.quantile(differences, (0.025, 0.975))
    return {
        "frechet_full": frechet(real, full),
        "frechet_half": frechet(real, half),
        "difference_low": float(low),
        "difference_high": float(high),
    }


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if half precision is worse than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=1797)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--most", type=int, default=10_000, help="training images at most")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    model = CDRL.from_pretrained(options.model)
    train, held_out = load_data(options.data).split(options.held_out)
    if len(train) > options.most:
        train, _ = train.split(1 - options.most / len(train))
    classifier = train_classifier(train)
    real = train.batch(np.arange(len(train)))[0]
    baseline = held_out.batch(np.arange(min(len(held_out), options.samples)))[0]
    label = cycled_classes(model, options.samples)
    samples = {
        precision: Sampler(model, precision=precision).sample(
            options.samples, label=label, batch_size=250, progress=True
        )
        for precision in ("fp32", "bf16")
    }
    features = {name: extracted(images, classifier).numpy() for name, images in samples.items()}
    real_features = extracted(real, classifier).numpy()
    figures = compared(real_features, features["fp32"], features["bf16"], options.resamples)
    figures["held_out_baseline"] = frechet(real_features, extracted(baseline, classifier).numpy())
    figures["allowed"] = 0.1 * figures["held_out_baseline"]
    for name, images in samples.items():
        figures[f"accuracy_{name}"] = float(
            (classifier.predict(images) == label).double().mean() if label is not None else 0
        )
    figures |= {"samples": options.samples, "training_images": len(real)}
    passed = figures["difference_high"] <= figures["allowed"]
    for name, value in figures.items():
        print(f"{name:18} {value:.6g}")
    print("passed" if passed else "half precision is worse than allowed")
    if options.out is not None:
        record = {"command": shlex.join(["python", *sys.argv]), "model": options.model}
        record |= {"data": options.data, "versions": about().versions}
        record |= {**figures, "passed": passed}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
