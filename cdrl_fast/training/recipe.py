"""Recipes: everything that decides a training run, as one JSON file that anyone can rerun."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from cdrl_fast.data import Dataset
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.networks import MLPEnergy, MLPInitializer, ResNetEnergy, UNetInitializer
from cdrl_fast.training.config import TrainConfig, check_field_types

SHIPPED = Path(__file__).parents[1] / "recipes"
RECIPE = "recipe.json"
"""The recipe's name in a run's folder."""


@dataclass(frozen=True)
class ModelOptions:
    """Sizes of the networks; channels, image size and classes come from the data.

    Attributes:
        energy_width, energy_multipliers, energy_blocks: of `ResNetEnergy` (blocks not of
            `MLPEnergy`).
        initializer: False trains DRL, CDRL's predecessor, whose levels start from x_t.
        initializer_width, initializer_multipliers, initializer_blocks, attention, dropout: of
            `UNetInitializer` (the width alone of `MLPInitializer`).
        conditional: whether the networks take labels, where the data has them.
        levels, steps: of the noise schedule.
    """

    energy_width: int = 128
    energy_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    energy_blocks: int = 8
    initializer: bool = True
    initializer_width: int = 64
    initializer_multipliers: tuple[int, ...] = (1, 1, 1)
    initializer_blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    dropout: float = 0.1
    conditional: bool = True
    levels: int = 6
    steps: int = 15

    def __post_init__(self) -> None:
        check_field_types(self)

    def build(self, data: Dataset, seed: int = 0) -> CDRL:
        """A fresh model for ``data``; the same seed gives the same weights."""
        classes: Any = data.classes if self.conditional and data.labels is not None else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._images(data, classes) if data.is_images else self._points(data, classes)

    def _images(self, data: Dataset, classes: Any) -> CDRL:
        channels, size, width = data.sample_shape
        if size != width:
            raise ValueError(f"model: expected square images, {data.name!r} has {size} by {width}")
        energy = ResNetEnergy(
            channels, self.energy_width, self.energy_multipliers, self.energy_blocks, classes
        )
        initializer = None
        if self.initializer:
            initializer = UNetInitializer(
                channels,
                size,
                self.initializer_width,
                self.initializer_multipliers,
                self.initializer_blocks,
                self.attention,
                self.dropout,
                classes,
            )
        schedule = NoiseSchedule(self.levels, self.steps)
        return CDRL(energy, initializer, schedule, sample_shape=data.sample_shape)

    def _points(self, data: Dataset, classes: Any) -> CDRL:
        (dim,) = data.sample_shape
        energy = MLPEnergy(dim, self.energy_width, self.energy_multipliers, classes)
        initializer = None
        if self.initializer:
            initializer = MLPInitializer(dim, self.initializer_width, classes=classes)
        schedule = NoiseSchedule(self.levels, self.steps, kappa=1e-3, step_scale="constant")
        return CDRL(energy, initializer, schedule, sample_shape=data.sample_shape)


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        data: what `load_data` takes.
        image_size: images are resized to it; None keeps their size.
        held_out: share of the data that training does not see; 0 keeps everything.
        iterations: the run's total.
        start: a model whose weights training starts from where layers agree, as
            `CDRL.from_pretrained` takes it; None: fresh weights.
        model, training: see `ModelOptions` and `TrainConfig`.
    """

    data: str = "digits"
    image_size: int | None = None
    held_out: float = 0.0
    iterations: int = 10_000
    start: str | None = None
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_field_types(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-ready values."""
        return asdict(self)


def load_recipe(name: str | Path) -> Recipe:
    """Reads a recipe: a shipped name ("digits"), or a JSON file.

    Raises:
        ValueError: no such recipe, broken JSON, a field that recipes do not have, or one of another
            type.
    """
    shipped = sorted(f.stem for f in SHIPPED.glob("*.json"))
    path = SHIPPED / f"{name}.json" if str(name) in shipped else Path(name)
    if not path.is_file():
        raise ValueError(
            f"recipe: {name} is neither a shipped recipe ({', '.join(shipped)}) nor a JSON file"
        )
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    model = _made(ModelOptions, values.pop("model", {}), f"{path}: model")
    training = _made(TrainConfig, values.pop("training", {}), f"{path}: training")
    return _made(Recipe, {**values, "model": model, "training": training}, str(path))


def recipe_of_run(folder: Path) -> dict[str, Any] | None:
    """A run's recipe as JSON-ready values; None where the folder has none."""
    path = folder / RECIPE
    return load_recipe(path).to_dict() if path.is_file() else None


def _made(kind: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object, got {values!r}")
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**lists)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
