"""Parsers of command-line options: devices, data, Langevin steps, labels."""

from __future__ import annotations

from typing import Any

import torch

from cdrl_fast.data import Dataset, load_data
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps


def parse_steps(options: tuple[str, ...]) -> Steps:
    """Return ``--steps``: one count, one count per level 1 … T (3/2/1 or 3 2 1), or tuned.

    Raises:
        ValueError: an entry is not a whole number.
    """
    entries = [entry for option in options for entry in option.split("/")]
    if entries == ["tuned"]:
        return "tuned"
    try:
        counts = tuple(int(entry) for entry in entries)
    except ValueError:
        raise ValueError(
            "steps: expected one number, one number per level 1 … T, or tuned, got "
            f"{' '.join(options)!r}"
        ) from None
    return None if not counts else counts[0] if len(counts) == 1 else counts


def load_split(
    spec: str, image_size: int | None, held_out: float
) -> tuple[Dataset, Dataset | None]:
    """Return the training data, and the held-out data, None where ``held_out`` is 0."""
    data = load_data(spec, image_size=image_size)
    return data.split(held_out) if held_out else (data, None)


def parse_device(name: str) -> torch.device:
    """Return the device of a name; auto is a GPU if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or a GPU that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return device


def parse_labels(options: tuple[str, ...], model: CDRL) -> Any:
    """Return one label, a list of several, or None; numbers where the classes have no names."""
    if not options:
        return None
    numbered = isinstance(model.classes, int)
    labels = [int(option) if numbered and option.isdecimal() else option for option in options]
    return labels[0] if len(labels) == 1 else labels
