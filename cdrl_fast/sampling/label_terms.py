"""Conversion of labels, guidance and combinations of densities to the engine's terms."""

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
    """Return the `Terms` of each network of ``source`` for n samples.

    Args:
        source: a model, or a combination of models' densities.
        rng: seed and index of the first sample; they determine the component of a mixture that
            each sample is drawn from.
        n: number of samples.
        label, guidance: as in `Sampler.sample`; a combination takes neither.
        device: device of labels and weights.

    Raises:
        ValueError, TypeError: a label or guidance that the source cannot take.
    """
    if not math.isfinite(guidance):
        raise ValueError(f"guidance: expected a finite number, got {guidance}")
    if isinstance(source, CDRL):
        return (_model_terms(source, n, label, guidance, device),)
    if label is not None or guidance != 0.0:
        raise ValueError(
            "label, guidance: a combination has its own labels and guidance; put "
            "conditional(model, label) and guided(conditional, unconditional, weight) into it"
        )

    def choose_components(index: int, cumulative: Tensor) -> Tensor:
        draw = Purpose.MIXTURE.draw(index)
        u = uniform((n, 1), seed=rng[0], draw=draw, first_sample=rng[1])[:, 0].double()
        return torch.searchsorted(cumulative, u).clamp_max(len(cumulative) - 1)

    slots = source.slots(choose_components)
    return tuple(_slot_terms([s for s in slots if s.model is m], device) for m in source.models)


def _model_terms(model: CDRL, n: int, label: Label, guidance: float, device: torch.device) -> Terms:
    if guidance != 0.0 and model.num_classes == 0:
        raise ValueError("guidance: this model is unconditional, so there is nothing to guide by")
    if guidance != 0.0 and label is None:
        raise ValueError("guidance: pass the label to guide towards")
    indices = model.label_indices(label, n)
    return Terms.guided(None if indices is None else indices.to(device), guidance)


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


def cycled_labels(model: CDRL, label: Sequence[int | str] | None, n: int) -> Tensor | None:
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
    classes = model.label_indices(list(label), len(label))  # type: ignore[arg-type]
    assert classes is not None
    return classes.repeat(-(-n // len(label)))[:n]
