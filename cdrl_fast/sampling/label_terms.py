"""Conversion of labels, guidance and combinations of densities to the engine's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.engine import Terms
from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.densities import Density
from cdrl_fast.model.slots import Slot
from cdrl_fast.ops.keys import ChainKeys
from cdrl_fast.sampling.request import SampleRequest


def label_terms(
    source: CDRL | Density, request: SampleRequest, device: torch.device
) -> tuple[Terms, ...]:
    """Return the `Terms` of each network of ``source`` for a request's samples.

    Args:
        source: a model, or a combination of models' densities.
        request: has number, label and guidance. Seed and first sample determine the component of
            a mixture that each sample is drawn from.
        device: device of labels and weights.

    Raises:
        ValueError, TypeError: a label or guidance that the source cannot take.
    """
    n, levels = request.n, source.models[0].schedule.levels
    keys = ChainKeys(request.seed, request.first_sample, levels)

    def choose_components(index: int, cumulative: Tensor) -> Tensor:
        u = keys.component(index).uniform((n, 1))[:, 0].double()
        return torch.searchsorted(cumulative, u).clamp_max(len(cumulative) - 1)

    slots = source.label_slots(n, request.label, request.guidance, choose_components)
    return tuple(_slot_terms([s for s in slots if s.model is m], device) for m in source.models)


def _slot_terms(slots: list[Slot], device: torch.device) -> Terms:
    if not slots:
        # All terms of this network cancel, but the engine needs one.
        return Terms((0.0,), (None,))

    def on_device(value: float | Tensor) -> float | Tensor:
        return value.to(device) if isinstance(value, Tensor) else value

    labels = [
        None if slot.label is None else torch.as_tensor(slot.label, device=device).reshape(-1)
        for slot in slots
    ]
    return Terms(
        tuple(on_device(slot.weight) for slot in slots),
        tuple(labels),
        tuple(on_device(slot.share) for slot in slots),
    )


def cycled_classes(model: CDRL, n: int) -> Tensor | None:
    """Return the labels 1, 2, … repeated for ``n`` samples; None without classes."""
    return torch.arange(n) % model.num_classes + 1 if model.num_classes else None


def cycled_labels(model: CDRL, label: Label, n: int) -> Tensor | None:
    """Return the labels of classes, repeated for ``n`` samples.

    Args:
        model: the model that has the classes.
        label: class numbers or names; None: no labels.
        n: number of samples.

    Returns:
        int64 (n,), or None without labels.

    Raises:
        ValueError: a single class, an empty list, or a class that the model does not have.
    """
    if label is None:
        return None
    if isinstance(label, (str, int)) or not len(label):
        raise ValueError(
            f"label: expected a list of classes, which samples take cyclically, got {label!r}"
        )
    classes = model.label_indices(list(label), len(label))
    assert classes is not None
    return classes.repeat(-(-n // len(label)))[:n]
