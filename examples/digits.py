"""Draw a hundred digits, one class per row, next to a chain per class from noise to digit.

    python examples/digits.py --out digits.png

It is the first picture of the README.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from cdrl_fast import CDRL, Sampler
from cdrl_fast.report import film_strip, image_grid

GAP = 24
"""Pixels between the digits and the chains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=None, help="per level; default: as trained")
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    options = parser.parse_args()
    sampler = Sampler(CDRL.from_pretrained("digits"), precision="fp32")
    settings = {"guidance": options.guidance, "steps": options.steps}
    classes = torch.arange(10) + 1
    digits = sampler.sample(100, label=classes.repeat_interleave(10), **settings)
    trace = sampler.sample_trace(10, label=classes, **settings)
    names = ["noise", *(f"level {t}" for t in range(sampler.model.schedule.levels, 0, -1))]
    left, right = image_grid(digits, columns=10), film_strip(list(trace.states), labels=names)
    size = left.width + GAP + right.width, max(left.height, right.height)
    picture = Image.new("RGB", size, "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + GAP, 0))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.out)
    print(f"{options.out}: {size[0]} by {size[1]} pixels")


if __name__ == "__main__":
    main()
