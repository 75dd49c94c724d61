"""Images with missing parts, read from files, and their completions, written to files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl_fast import report
from cdrl_fast.checkpoint import write_atomic
from cdrl_fast.data import load_data
from cdrl_fast.errors import DataError
from cdrl_fast.masks import known_mask
from cdrl_fast.model import CDRL


def load_masked(
    source: str, mask: str, model: CDRL, n: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images for a model to complete.

    Args:
        source: a folder of pictures, or what `load_data` takes; images get the model's size.
        mask, seed: as in `known_mask`.
        model: a model of images.
        n: the first so many, or all if there are fewer.

    Returns:
        float32 (n, C, H, W) in [-1, 1], and bool (n, 1, H, W), True where a pixel is kept.

    Raises:
        ValueError: a model of points, n below 1, a wrong mask. DataError: as `load_data`.
    """
    if not model.is_image:
        raise ValueError("inpaint: expected a model of images; in Python Sampler.inpaint takes any")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    channels, *size = model.sample_shape
    folder = Path(source).expanduser()
    spec = f"folder:{folder}" if folder.is_dir() else source
    data = load_data(spec, image_size=size[0])
    if data.sample_shape != model.sample_shape:
        raise DataError(
            f"{source}: has {data.sample_shape[0]} channels, and the model takes {channels}; "
            "convert the images"
        )
    images, _ = data.batch(torch.arange(min(n, len(data))))
    return images, known_mask(mask, len(images), (size[0], size[1]), seed=seed)


def write_completions(images: Tensor, known: Tensor, completions: Tensor, folder: Path) -> None:
    """Writes ``overview.png``, ``completions.npz`` and ``IMAGE-COMPLETION.png`` of each, from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    each = completions.reshape(len(images), -1, *images.shape[1:])
    report.completion_grid(images, known, completions).save(folder / "overview.png")
    for index in np.ndindex(*each.shape[:2]):
        name = "{:05d}-{:02d}.png".format(*index)
        report.save_image_grid(each[index][None], folder / name, scale=1)
    write_npz(folder / "completions.npz", images=images, known=known, completions=each)


def write_npz(path: Path, **arrays: Tensor) -> None:
    """Writes tensors on the CPU, whole or not at all."""
    buffer = io.BytesIO()
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez(buffer, **values)
    write_atomic(path, buffer.getvalue())
