"""Masks for inpainting by name, and from pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.ops import philox
from cdrl_fast.ops.philox import Purpose

# Of the noise stream's purpose: 0 and the levels' indices are the chains'.
_INDEX = 1


def known_mask(spec: str, n: int, size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Which pixels of ``n`` images are kept.

    Args:
        spec: what to fill:

            - ``lower-half``: rows H // 2 … H - 1;
            - ``random:P``: each pixel with probability P, drawn for each image;
            - a picture's path: where it is white (128 and above of 255), the same for all images;
              resized and cut to ``size`` as ``load_data`` does with images, without smoothing.
        n: how many images.
        size: (H, W).
        seed: of ``random:P``; pixels come from the noise stream, image i being sample i.

    Returns:
        bool (n, 1, H, W), True where a pixel is kept.

    Raises:
        ValueError: a name that is none of these, or P not between 0 and 1.
        OSError: the picture cannot be read. ImportError: Pillow is not installed.
    """
    height, width = size
    kind, _, share = spec.partition(":")
    if spec == "lower-half":
        keep = torch.arange(height)[:, None] < height // 2
        return keep.expand(n, 1, height, width)
    if kind == "random":
        chance = _probability(share)
        draw = Purpose.INPAINTING.draw(_INDEX)
        return philox.uniform((n, 1, height, width), seed=seed, draw=draw) > chance
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ValueError(f"mask: {spec} is neither lower-half, random:P nor a picture's file")
    return ~_white(path, size).expand(n, 1, height, width)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"mask: expected random:P with P from 0 to 1, got random:{text}")
    return value


def _white(path: Path, size: tuple[int, int]) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        grey = ImageOps.fit(image.convert("L"), size[::-1], method=Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(grey) >= 128)
