"""From what a caller asks for to the engine's terms: labels, guidance and combinations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_fast.engine import Terms
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density, Slot
from cdrl_fast.ops.philox import Purpose, uniform


def label_terms(
    source: CDRL | Density,
    rng: tuple[int, int],
    n: int,
    label: Label,
    guidance: float,
    device: torch.device,
) -> tuple[Terms, ...]:
    """One `Terms` for each network in ``source``, for n samples.

    Args:
        rng: seed and index of the first sample, for mixtures' components.
        label, guidance: as in `Sampler.sample`; of models alone.

    Raises:
        ValueError, TypeError: what does not fit.
    """
    if not math.isfinite(guidance):
        raise ValueError(f"guidance: expected a finite number, got {guidance}")
    if isinstance(source, CDRL):
        return (_of_model(source, n, label, guidance, device),)
    if label is not None or guidance != 0.0:
        raise ValueError(
            "label, guidance: a combination has its own; write conditional(model, label) and "
            "guided(conditional, unconditional, weight) into it"
        )

    def choose(number: int, cumulated: Tensor) -> Tensor:
        draw = Purpose.MIXTURE.draw(number)
        u = uniform((n, 1), seed=rng[0], draw=draw, first_sample=rng[1])[:, 0].double()
        return torch.searchsorted(cumulated, u).clamp_max(len(cumulated) - 1)

    slots = source.slots(choose)
    return tuple(_terms([s for s in slots if s.model is m], device) for m in source.models)


def _of_model(model: CDRL, n: int, label: Label, guidance: float, device: torch.device) -> Terms:
    if guidance != 0.0 and model.num_classes == 0:
        raise ValueError("guidance: this model is unconditional, so there is nothing to guide by")
    if guidance != 0.0 and label is None:
        raise ValueError("guidance: pass the label to guide towards")
    indices = model.label_indices(label, n)
    return Terms.guided(None if indices is None else indices.to(device), guidance)


def _terms(slots: list[Slot], device: torch.device) -> Terms:
    if not slots:
        # All of a network's terms cancel.
        return Terms((0.0,), (None,))

    def placed(value: float | Tensor) -> float | Tensor:
        return value.to(device) if isinstance(value, Tensor) else value

    labels = [
        None if slot.label is None else torch.as_tensor(slot.label, device=device).reshape(-1)
        for slot in slots
    ]
    return Terms(
        tuple(placed(slot.weight) for slot in slots),
        tuple(labels),
        tuple(placed(slot.share) for slot in slots),
    )


def cycled_classes(model: CDRL, n: int) -> Tensor | None:
    """Labels 1, 2, … repeated for ``n`` samples; None where the model has no classes."""
    return torch.arange(n) % model.num_classes + 1 if model.num_classes else None


def cycled_labels(model: CDRL, label: Sequence[int | str] | None, n: int) -> Tensor | None:
    """Classes by number or name, repeated for ``n`` samples: int64 (n,); None where there are none.

    Raises:
        ValueError: a single class, no class, or one that the model does not have.
    """
    if label is None:
        return None
    if isinstance(label, (str, int)) or not len(label):
        raise ValueError(f"label: expected a list of classes to take in turn, got {label!r}")
    found = model.label_indices(list(label), len(label))  # type: ignore[arg-type]
    assert found is not None
    return found.repeat(-(-n // len(label)))[:n]
