"""From the command line's words to what the library takes."""

from __future__ import annotations

from typing import Any

import torch

from cdrl_fast.model import CDRL


def device_of(name: str) -> torch.device:
    """A device; "auto": a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def steps_of(steps: tuple[int, ...]) -> int | tuple[int, ...] | None:
    """Steps as `Sampler.sample` takes them; none: as trained."""
    return None if not steps else steps[0] if len(steps) == 1 else steps


def labels_of(labels: tuple[str, ...], model: CDRL) -> Any:
    """Names where the model's classes have names, numbers otherwise."""
    if not labels:
        return None
    named = [label if not isinstance(model.classes, int) else int(label) for label in labels]
    return named[0] if len(named) == 1 else named
