"""Masks for inpainting, selected by name or read from pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdrl_fast.ops.keys import mask_key


def known_mask(spec: str, n: int, size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Return a mask of the known pixels of ``n`` images.

    Args:
        spec: the pixels to fill, which are the unknown ones:

            - ``lower-half``: rows H // 2 … H - 1;
            - ``random:P``: each pixel of each image with probability P;
            - the path of a picture: its white pixels (128 to 255), the same for all images. The
              picture is resized and cropped to ``size`` as ``load_data`` does with images, but
              without smoothing.
        n: number of images.
        size: (H, W).
        seed: seed of ``random:P``. Image i takes its pixels from sample i of the noise stream.

    Returns:
        bool (n, 1, H, W), True where a pixel is known.

    Raises:
        ValueError: ``spec`` is none of these, or P is not between 0 and 1.
        OSError: the picture cannot be read.
        ImportError: Pillow is not installed.
    """
    height, width = size
    kind, _, probability = spec.partition(":")
    if spec == "lower-half":
        known = torch.arange(height)[:, None] < height // 2
        return known.expand(n, 1, height, width)
    if kind == "random":
        threshold = _probability(probability)
        return mask_key(seed).uniform((n, 1, height, width)) > threshold
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ValueError(f"mask: {spec} is neither lower-half, random:P nor a picture's file")
    return ~_white_pixels(path, size).expand(n, 1, height, width)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"mask: expected random:P with P from 0 to 1, got random:{text}")
    return value


def _white_pixels(path: Path, size: tuple[int, int]) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        grey = ImageOps.fit(image.convert("L"), size[::-1], method=Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(grey) >= 128)
