"""Combinations of densities: one class, products, guidance, negation, mixtures, temperature.

Each is, for every sample, a linear combination of the models' log-densities at a noise level. A
`Sampler` takes one in place of a model; networks that occur more than once are evaluated in one
batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cdrl_fast.model.cdrl import CDRL

Choice = Callable[[int, Tensor], Tensor]
"""For a mixture's number and its cumulated weights the component of each sample, int64 (n,)."""


@dataclass(frozen=True)
class Slot:
    """weight · log p(·|label), and share · the initializer's mean.

    Attributes:
        model: whose.
        label: a class index, 0 being "no label", None of an unconditional model; or one a sample.
        weight, share: one number, or one a sample.
    """

    model: CDRL
    label: int | Tensor | None
    weight: float | Tensor = 1.0
    share: float | Tensor = 1.0

    def scaled(self, weight: float, share: float) -> Slot:
        """The slot times a number."""
        return replace(self, weight=self.weight * weight, share=self.share * share)


class Density(ABC):
    """What `Sampler` can sample: a combination of models' densities.

    Examples:
        >>> from cdrl_fast import CDRL, Density, conditional
        >>> isinstance(conditional(CDRL.from_pretrained("digits"), "3"), Density)
        True
    """

    @abstractmethod
    def slots(self, choose: Choice, first: int = 0) -> list[Slot]:
        """The linear combination that it is for each sample.

        Args:
            choose: draws the mixtures' components.
            first: number of the first mixture in it.
        """

    @property
    @abstractmethod
    def models(self) -> tuple[CDRL, ...]:
        """The models in it, each once."""

    @property
    @abstractmethod
    def mixtures(self) -> int:
        """How many mixtures are in it."""


@dataclass(frozen=True)
class Conditional(Density):
    """One class of a model, or its unconditional density."""

    model: CDRL
    label: int | None

    def slots(self, choose: Choice, first: int = 0) -> list[Slot]:
        return [Slot(self.model, self.label)]

    @property
    def models(self) -> tuple[CDRL, ...]:
        return (self.model,)

    @property
    def mixtures(self) -> int:
        return 0


@dataclass(frozen=True)
class _Several(Density):
    """What is made of parts."""

    parts: tuple[Density, ...]
    models: tuple[CDRL, ...] = field(init=False, default=())
    mixtures: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        models: dict[int, CDRL] = {id(m): m for part in self.parts for m in part.models}
        object.__setattr__(self, "models", tuple(models.values()))
        object.__setattr__(self, "mixtures", sum(part.mixtures for part in self.parts))
        _check_together(self.models)


@dataclass(frozen=True)
class Linear(_Several):
    """Σ weight_i log p_i; initializers' means with ``shares``."""

    weights: tuple[float, ...]
    shares: tuple[float, ...]

    def slots(self, choose: Choice, first: int = 0) -> list[Slot]:
        found: list[Slot] = []
        for part, weight, share in zip(self.parts, self.weights, self.shares, strict=True):
            found += [slot.scaled(weight, share) for slot in part.slots(choose, first)]
            first += part.mixtures
        return _merged(found)


@dataclass(frozen=True)
class Mixture(_Several):
    """One part a sample, drawn with ``probabilities``."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mixtures", self.mixtures + 1)

    def slots(self, choose: Choice, first: int = 0) -> list[Slot]:
        chosen = choose(first, torch.tensor(self.probabilities, dtype=torch.float64).cumsum(0))
        first += 1
        forms: list[list[Slot]] = []
        for part in self.parts:
            forms.append(part.slots(choose, first))
            first += part.mixtures
        found: list[Slot] = []
        for model in self.models:
            of_model = [[slot for slot in form if slot.model is model] for form in forms]
            # The j-th terms of all parts share a place: a network runs as often as for one part.
            for j in range(max(map(len, of_model))):
                column = [form[j] if j < len(form) else None for form in of_model]
                found.append(_chosen(model, column, chosen))
        return found


def conditional(model: CDRL, label: int | str) -> Density:
    """The density p(·|label) of one class, which `Sampler` takes and others are made of.

    Args:
        model: a conditional model.
        label: a class number, 1 … classes (0 is "no label"), or a class name.

    Raises:
        ValueError, TypeError: not a class of the model, or not a model.

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
    return Conditional(model, int(indices))


def product(*factors: CDRL | Density, base: CDRL | Density | None = None) -> Density:
    """Π p_i(x) / p_base(x)^(k-1): all of k concepts at a time, independent given the sample.

    Args:
        factors: densities; a model stands for its unconditional density.
        base: what the concepts have in common. None: the unconditional density of the model that
            all factors share.

    Raises:
        ValueError: no factor; networks trained apart and no ``base``; densities that do not fit.
        TypeError: neither models nor densities.

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
        raise ValueError("product: expected at least one density")
    k = len(parts)
    if k == 1:
        return parts[0]
    if base is None:
        models = {id(m): m for part in parts for m in part.models}
        if len(models) > 1:
            raise ValueError(
                "product: these densities are of networks trained apart; pass base=, the density "
                "that they have in common (one of the models, say)"
            )
        (model,) = models.values()
        if model.num_classes == 0:
            raise ValueError("product: an unconditional model's product with itself needs base=")
        base = model
    weights = (*[1.0] * k, 1.0 - k)
    return Linear((*parts, _density("product", base)), weights, weights)


def guided(conditional: CDRL | Density, unconditional: CDRL | Density, weight: float) -> Density:
    """p(x|c)^(1+w) / p(x)^w: classifier-free guidance.

    Args:
        conditional, unconditional: densities.
        weight: w; 0 is the conditional density.

    Raises:
        ValueError: a weight that is not finite, densities that do not fit. TypeError: no densities.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, guided
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = guided(conditional(digits, "3"), digits, 1.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    return _away("guided", conditional, unconditional, weight)


def negated(base: CDRL | Density, a: CDRL | Density, weight: float) -> Density:
    """p_base(x)^(1+w) / p_a(x)^w: like ``base``, but not like ``a``.

    Args:
        base, a: densities.
        weight: w; 0 is ``base``.

    Raises:
        ValueError: a weight that is not finite, densities that do not fit. TypeError: no densities.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, negated
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = negated(digits, conditional(digits, "7"), 0.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    return _away("negated", base, a, weight)


def mixture(*components: CDRL | Density, weights: Sequence[float] | None = None) -> Density:
    """Σ weight_i p_i(x): each sample follows one component, drawn from the noise stream.

    Energies know densities up to a constant, so their sum has no meaning; the weights give it one.

    Args:
        components: densities.
        weights: one a component, not negative; their sum is taken as 1. None: equal ones.

    Raises:
        ValueError: no component, weights that do not fit, densities that do not fit.
        TypeError: neither models nor densities.

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
            f"mixture: expected one weight a component, got {len(shares)} for {len(parts)}"
        )
    total = sum(shares)
    if not (math.isfinite(total) and total > 0 and min(shares) >= 0):
        raise ValueError(f"mixture: expected weights >= 0 with a positive sum, got {shares}")
    return Mixture(parts, tuple(share / total for share in shares))


def tempered(a: CDRL | Density, temperature: float) -> Density:
    """p_a(x)^(1/T): flatter above temperature 1, more peaked below.

    Proposals stay as they are.

    Args:
        a: a density.
        temperature: T > 0.

    Raises:
        ValueError: a temperature that is not positive.

    Examples:
        >>> from cdrl_fast import CDRL, Sampler, conditional, tempered
        >>> digits = CDRL.from_pretrained("digits")
        >>> density = tempered(conditional(digits, "3"), 0.5)
        >>> Sampler(density).sample(2, steps=1).shape
        torch.Size([2, 1, 8, 8])
    """
    temperature = _number("tempered", "temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"tempered: expected temperature > 0, got {temperature}")
    return Linear((_density("tempered", a),), (1.0 / temperature,), (1.0,))


def _away(where: str, towards: CDRL | Density, other: CDRL | Density, weight: float) -> Density:
    """(1 + w) log p_towards - w log p_other."""
    parts = (_density(where, towards), _density(where, other))
    w = _number(where, "weight", weight)
    return Linear(parts, (1.0 + w, -w), (1.0 + w, -w))


def _density(where: str, a: CDRL | Density) -> Density:
    if isinstance(a, Density):
        return a
    if isinstance(a, CDRL):
        return Conditional(a, 0 if a.num_classes else None)
    raise TypeError(f"{where}: expected models or their combinations, got {type(a).__name__}")


def _number(where: str, name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite {name}, got {value}")
    return float(value)


def _check_together(models: Sequence[CDRL]) -> None:
    """Densities are combined level by level, in the same coordinates."""
    first = models[0]
    for other in models[1:]:
        for what in ("schedule", "sample_shape"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if what == "schedule":
                # How many steps are taken is the sampler's business.
                theirs = replace(theirs, steps=ours.steps)
            if ours != theirs:
                raise ValueError(
                    f"combination: the models must have one {what}, got {ours} and {theirs}"
                )
        if (first.initializer is None) != (other.initializer is None):
            raise ValueError(
                "combination: either all models have an initializer or none has; give those that "
                "have one without it: CDRL(model.energy, None, model.schedule, sample_shape=…)"
            )


def _merged(slots: list[Slot]) -> list[Slot]:
    """Terms of one network and label together; those that cancel are gone."""
    found: dict[tuple[int, int | None], Slot] = {}
    rest: list[Slot] = []
    for slot in slots:
        if isinstance(slot.label, Tensor):
            rest.append(slot)
            continue
        key = (id(slot.model), slot.label)
        if key in found:
            old = found[key]
            slot = replace(old, weight=old.weight + slot.weight, share=old.share + slot.share)
        found[key] = slot
    return [slot for slot in (*found.values(), *rest) if not _is_zero(slot)]


def _is_zero(slot: Slot) -> bool:
    return not any(isinstance(x, Tensor) or x != 0.0 for x in (slot.weight, slot.share))


def _chosen(model: CDRL, column: list[Slot | None], chosen: Tensor) -> Slot:
    """One slot of the components' slots, each sample's from its component."""

    def gathered(values: list[float | Tensor]) -> float | Tensor:
        first = values[0]
        if not any(isinstance(v, Tensor) for v in values) and all(v == first for v in values):
            return first
        table = [torch.as_tensor(v, dtype=torch.float64).expand(len(chosen)) for v in values]
        return torch.stack(table).gather(0, chosen[None])[0]

    # What is absent takes a label that is there: one label for all needs no gathering.
    some = next(slot.label for slot in column if slot is not None)
    empty = Slot(model, some, 0.0, 0.0)
    slots = [empty if slot is None else slot for slot in column]
    label: int | Tensor | None = slots[0].label
    if model.num_classes:
        labels = [torch.as_tensor(slot.label).expand(len(chosen)) for slot in slots]
        if any(isinstance(s.label, Tensor) or s.label != label for s in slots):
            label = torch.stack(labels).gather(0, chosen[None])[0]
    return Slot(
        model, label, gathered([s.weight for s in slots]), gathered([s.share for s in slots])
    )
