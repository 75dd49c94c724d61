"""What words on a command line mean: devices, data, step plans, labels."""

from __future__ import annotations

from typing import Any

import torch

from cdrl_fast.data import Dataset, load_data
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps


def one_plan(words: tuple[str, ...]) -> Steps:
    """A plan as ``--steps`` takes it: a number, numbers of levels 1 … T, or tuned."""
    parts = [part for word in words for part in word.split("/")]
    if parts == ["tuned"]:
        return "tuned"
    try:
        counts = tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(
            "steps: expected a number, a number for each of levels 1 … T or tuned, got "
            f"{' '.join(words)!r}"
        ) from None
    return None if not counts else counts[0] if len(counts) == 1 else counts


def load_split(
    spec: str, image_size: int | None, held_out: float
) -> tuple[Dataset, Dataset | None]:
    """The data to train on, and the share that is held out."""
    data = load_data(spec, image_size=image_size)
    return data.split(held_out) if held_out else (data, None)


def device_of(name: str) -> torch.device:
    """A device by its name; auto: a GPU where there is one.

    Raises:
        ValueError: no device has this name, or there is none of this kind here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def labels_of(labels: tuple[str, ...], model: CDRL) -> Any:
    """Names where the model's classes have names, numbers otherwise."""
    if not labels:
        return None
    numbered = isinstance(model.classes, int)
    named = [int(word) if numbered and word.isdecimal() else word for word in labels]
    return named[0] if len(named) == 1 else named
