"""Combinations of densities: one class, products, guidance, negation, mixtures, temperature.

A combination is, for every sample, a linear combination of the models' log-densities at a noise
level. A `Sampler` takes one in place of a model; a network that occurs in several terms is
evaluated once, on one batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cdrl_fast.model.cdrl import CDRL, Label
from cdrl_fast.model.slots import DrawComponents, Slot


class Density(ABC):
    """Combination of models' densities, which `Sampler` takes in place of a model.

    Combinations are built by `conditional`, `product`, `guided`, `negated`, `mixture` and
    `tempered`, from models and from other combinations.

    Examples:
        >>> from cdrl_fast import CDRL, Density, conditional
        >>> isinstance(conditional(CDRL.from_pretrained("digits"), "3"), Density)
        True
    """

    @abstractmethod
    def slots(self, choose: DrawComponents, first: int = 0) -> list[Slot]:
        """Return the terms of the linear combination, for each sample.

        Args:
            choose: draws each sample's component of a mixture.
            first: number of the combination's first mixture.

        Returns:
            The terms; a model can have several.
        """

    takes_labels = False

    def label_slots(
        self, n: int, label: Label, guidance: float, choose: DrawComponents
    ) -> list[Slot]:
        """Return `slots`; a model returns those of its labels and guidance.

        Args:
            n: number of samples.
            label, guidance: must be None and 0.
            choose: as in `slots`.

        Raises:
            ValueError: a label or guidance, which a combination has inside.
        """
        if label is not None or guidance != 0.0:
            raise ValueError(
                "label, guidance: a combination has its own labels and guidance; put "
                "conditional(model, label) and guided(conditional, unconditional, weight) into it"
            )
        return self.slots(choose)

    @property
    @abstractmethod
    def models(self) -> tuple[CDRL, ...]:
        """Models of the combination, each listed once."""

    @property
    @abstractmethod
    def mixtures(self) -> int:
        """Number of mixtures in the combination."""


@dataclass(frozen=True)
class ClassDensity(Density):
    """Density of one class of a model, or its unconditional density."""

    model: CDRL
    label: int | None

    def slots(self, choose: DrawComponents, first: int = 0) -> list[Slot]:
        return [Slot(self.model, self.label)]

    @property
    def models(self) -> tuple[CDRL, ...]:
        return (self.model,)

    @property
    def mixtures(self) -> int:
        return 0


@dataclass(frozen=True)
class _Composite(Density):
    """Density with several parts."""

    parts: tuple[Density, ...]
    models: tuple[CDRL, ...] = field(init=False, default=())
    mixtures: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        models: dict[int, CDRL] = {id(m): m for part in self.parts for m in part.models}
        object.__setattr__(self, "models", tuple(models.values()))
        object.__setattr__(self, "mixtures", sum(part.mixtures for part in self.parts))
        _check_compatible(self.models)


@dataclass(frozen=True)
class Linear(_Composite):
    """Linear combination Σ weight_i log p_i, with factors ``shares`` for initializers' means."""

    weights: tuple[float, ...]
    shares: tuple[float, ...]

    def slots(self, choose: DrawComponents, first: int = 0) -> list[Slot]:
        slots: list[Slot] = []
        for part, weight, share in zip(self.parts, self.weights, self.shares, strict=True):
            slots += [slot.scaled(weight, share) for slot in part.slots(choose, first)]
            first += part.mixtures
        return _merged(slots)


@dataclass(frozen=True)
class Mixture(_Composite):
    """Mixture of its parts: each sample follows one part, drawn with ``probabilities``."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mixtures", self.mixtures + 1)

    def slots(self, choose: DrawComponents, first: int = 0) -> list[Slot]:
        components = choose(first, torch.tensor(self.probabilities, dtype=torch.float64).cumsum(0))
        first += 1
        slots_by_part: list[list[Slot]] = []
        for part in self.parts:
            slots_by_part.append(part.slots(choose, first))
            first += part.mixtures
        slots: list[Slot] = []
        for model in self.models:
            model_slots = [[s for s in part if s.model is model] for part in slots_by_part]
            # The j-th terms of all parts share one slot, so that a network is evaluated only as
            # often as the part with the most terms needs.
            for j in range(max(map(len, model_slots))):
                column = [part[j] if j < len(part) else None for part in model_slots]
                slots.append(_selected(model, column, components))
        return slots


def conditional(model: CDRL, label: int | str) -> Density:
    """Return the density p(·|label) of one class of a model.

    Args:
        model: a conditional model.
        label: a class number from 1 to the number of classes, 0 ("no label"), or a class name.

    Returns:
        A `Density`, for `Sampler` or for other combinations.

    Raises:
        ValueError: ``label`` is not a class of the model, or the model is unconditional.
        TypeError: ``model`` is not a `CDRL`, or ``label`` is not one number or name.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, mixture
        >>> digits = CDRL.from_pretrained("digits")
        >>> odd = mixture(*(conditional(digits, name) for name in "13579"))
        >>> Sampler(odd).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    if not isinstance(model, CDRL):
        raise TypeError(f"conditional: model must be a CDRL, got {type(model).__name__}")
    indices = model.label_indices(label, 1)
    if indices is None or len(indices) != 1 or not isinstance(label, int | str):
        raise TypeError(f"conditional: expected one class number or name, got {label!r}")
    return ClassDensity(model, int(indices))


def product(*factors: CDRL | Density, base: CDRL | Density | None = None) -> Density:
    """Return the product of k densities, Π p_i(x) / p_base(x)^(k-1).

    A sample of the product has all k concepts at once. The formula assumes that the concepts are
    conditionally independent, given the sample.

    Args:
        factors: densities; a model means its unconditional density.
        base: the density that the factors have in common. None: the unconditional density of the
            model that all factors share.

    Returns:
        A `Density`; a single factor is returned as it is.

    Raises:
        ValueError: no factor; factors of several models, or of an unconditional model, without
            ``base``; models with different schedules or sample shapes.
        TypeError: an argument is neither a model nor a density.

    Source: Du, Li, Mordatch, "Compositional Visual Generation with Energy Based Models", 2020.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, product
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = product(conditional(digits, "3"), conditional(digits, "8"))
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    parts = [_density("product", f) for f in factors]
    if not parts:
        raise ValueError("product: expected at least one density, got none")
    k = len(parts)
    if k == 1:
        return parts[0]
    if base is None:
        models = {id(m): m for part in parts for m in part.models}
        if len(models) > 1:
            raise ValueError(
                "product: these densities are of networks trained apart; pass base=, the density "
                "that they have in common, for example one of the models"
            )
        (model,) = models.values()
        if model.num_classes == 0:
            raise ValueError(
                "product: the product of an unconditional model with itself needs base=; pass the "
                "density that the factors have in common"
            )
        base = model
    weights = (*[1.0] * k, 1.0 - k)
    return Linear((*parts, _density("product", base)), weights, weights)


def guided(conditional: CDRL | Density, unconditional: CDRL | Density, weight: float) -> Density:
    """Return the density of classifier-free guidance, p(x|c)^(1+w) / p(x)^w.

    Args:
        conditional: the density p(x|c); a model means its unconditional density.
        unconditional: the density p(x), usually the model itself.
        weight: w; 0 gives the conditional density.

    Returns:
        A `Density`.

    Raises:
        ValueError: ``weight`` is not finite, or the models have different schedules or sample
            shapes.
        TypeError: an argument is neither a model nor a density.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, guided
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = guided(conditional(digits, "3"), digits, 1.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    return _extrapolated("guided", conditional, unconditional, weight)


def negated(base: CDRL | Density, a: CDRL | Density, weight: float) -> Density:
    """Return the density of ``base`` without the concept ``a``, p_base(x)^(1+w) / p_a(x)^w.

    Args:
        base: a density; a model means its unconditional density.
        a: the density that the samples should avoid.
        weight: w; 0 gives ``base``.

    Returns:
        A `Density`.

    Raises:
        ValueError: ``weight`` is not finite, or the models have different schedules or sample
            shapes.
        TypeError: an argument is neither a model nor a density.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, negated
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = negated(digits, conditional(digits, "7"), 0.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    return _extrapolated("negated", base, a, weight)


def mixture(*components: CDRL | Density, weights: Sequence[float] | None = None) -> Density:
    """Return the mixture Σ weight_i p_i(x): each sample follows one component.

    The noise stream draws the component with probability weight_i. Energies define densities only
    up to a constant, so the proportions must come from the weights.

    Args:
        components: densities; a model means its unconditional density.
        weights: one number per component, not negative; they are divided by their sum. None: equal
            weights.

    Returns:
        A `Density`.

    Raises:
        ValueError: no component, another number of weights, a negative or non-finite weight,
            weights whose sum is 0, or models with different schedules or sample shapes.
        TypeError: a component is neither a model nor a density.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, mixture
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = mixture(conditional(digits, "1"), conditional(digits, "7"), weights=(3, 1))
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    parts = tuple(_density("mixture", c) for c in components)
    shares = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if not parts or len(shares) != len(parts):
        raise ValueError(
            "mixture: expected at least one component and one weight per component, got "
            f"{len(parts)} components and {len(shares)} weights"
        )
    total = sum(shares)
    if not (math.isfinite(total) and total > 0 and min(shares) >= 0):
        raise ValueError(f"mixture: expected weights >= 0 with a positive sum, got {shares}")
    return Mixture(parts, tuple(share / total for share in shares))


def tempered(a: CDRL | Density, temperature: float) -> Density:
    """Return the density at another temperature, p_a(x)^(1/T).

    It is flatter for T > 1 and more peaked for T < 1. The initializer's proposals do not change.

    Args:
        a: a density; a model means its unconditional density.
        temperature: T > 0.

    Returns:
        A `Density`.

    Raises:
        ValueError: ``temperature`` is not positive and finite.
        TypeError: ``a`` is neither a model nor a density.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, tempered
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = tempered(conditional(digits, "3"), 0.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    temperature = _finite("tempered", "temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"tempered: expected temperature > 0, got {temperature}")
    return Linear((_density("tempered", a),), (1.0 / temperature,), (1.0,))


def _extrapolated(
    function: str, towards: CDRL | Density, away_from: CDRL | Density, weight: float
) -> Density:
    """Return the density with log-density (1 + w) log p_towards - w log p_away_from."""
    parts = (_density(function, towards), _density(function, away_from))
    w = _finite(function, "weight", weight)
    return Linear(parts, (1.0 + w, -w), (1.0 + w, -w))


def _density(function: str, a: CDRL | Density) -> Density:
    if isinstance(a, Density):
        return a
    if isinstance(a, CDRL):
        return ClassDensity(a, 0 if a.num_classes else None)
    raise TypeError(f"{function}: expected models or their combinations, got {type(a).__name__}")


def _finite(function: str, name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{function}: expected a finite {name}, got {value}")
    return float(value)


def _check_compatible(models: Sequence[CDRL]) -> None:
    """Check that the models' densities can be combined: same levels, coordinates and proposals."""
    first = models[0]
    for other in models[1:]:
        # The number of steps is left out: the sampler's plan decides it.
        schedule = replace(other.schedule, steps=first.schedule.steps)
        if first.schedule != schedule:
            raise ValueError(
                "combination: the models must have one schedule, got "
                f"{first.schedule} and {schedule}"
            )
        if first.sample_shape != other.sample_shape:
            raise ValueError(
                "combination: the models must have one sample_shape, got "
                f"{first.sample_shape} and {other.sample_shape}"
            )
        if (first.initializer is None) != (other.initializer is None):
            raise ValueError(
                "combination: either all models have an initializer or none has, got both kinds; "
                "leave the initializers out: CDRL(model.energy, None, model.schedule, "
                "sample_shape=model.sample_shape)"
            )


def _merged(slots: list[Slot]) -> list[Slot]:
    """Return the terms with equal network and label added up, without terms that are zero."""
    sums: dict[tuple[int, int | None], Slot] = {}
    unmerged: list[Slot] = []
    for slot in slots:
        if isinstance(slot.label, Tensor):
            unmerged.append(slot)
            continue
        key = (id(slot.model), slot.label)
        if key in sums:
            partial = sums[key]
            slot = replace(
                partial, weight=partial.weight + slot.weight, share=partial.share + slot.share
            )
        sums[key] = slot
    return [slot for slot in (*sums.values(), *unmerged) if not _is_zero(slot)]


def _is_zero(slot: Slot) -> bool:
    return not any(isinstance(x, Tensor) or x != 0.0 for x in (slot.weight, slot.share))


def _selected(model: CDRL, column: list[Slot | None], components: Tensor) -> Slot:
    """Return one term that has, for each sample, the values of the sample's component.

    Args:
        model: the model of all the terms.
        column: the term of each component, or None.
        components: index of each sample's component, int64 (n,).
    """

    def per_sample(values: list[float | Tensor]) -> float | Tensor:
        first = values[0]
        if not any(isinstance(v, Tensor) for v in values) and all(v == first for v in values):
            return first
        table = [torch.as_tensor(v, dtype=torch.float64).expand(len(components)) for v in values]
        return torch.stack(table).gather(0, components[None])[0]

    # An absent term takes a present term's label, so that equal labels stay one label for all
    # samples.
    present_label = next(slot.label for slot in column if slot is not None)
    empty = Slot(model, present_label, 0.0, 0.0)
    slots = [empty if slot is None else slot for slot in column]
    label: int | Tensor | None = slots[0].label
    if model.num_classes:
        labels = [torch.as_tensor(slot.label).expand(len(components)) for slot in slots]
        if any(isinstance(s.label, Tensor) or s.label != label for s in slots):
            label = torch.stack(labels).gather(0, components[None])[0]
    weights, shares = [s.weight for s in slots], [s.share for s in slots]
    return Slot(model, label, per_sample(weights), per_sample(shares))
