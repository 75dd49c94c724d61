"""Recipes: all settings of a training run, as one JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.training.config import TrainConfig, checked, describe

if TYPE_CHECKING:
    from cdrl_fast.data import Dataset
    from cdrl_fast.model.cdrl import CDRL

SHIPPED = Path(__file__).parents[1] / "recipes"
RECIPE = "recipe.json"
"""File name of the recipe in a run's folder."""


@checked
@dataclass(frozen=True)
class ModelOptions:
    """Sizes of the networks; channels, image size and classes come from the data.

    Attributes:
        energy_width: width of the energy, in channels or features.
        energy_multipliers: channels of each resolution (features of each block for points), as
            multiples of energy_width.
        energy_blocks: residual blocks per resolution of `ResNetEnergy`; not read for points.
        initializer: False trains DRL, CDRL's predecessor, whose levels start from x_t.
        initializer_width: width of the initializer, in channels or features.
        initializer_multipliers: channels of each resolution of `UNetInitializer`, as multiples of
            initializer_width; not read for points.
        initializer_blocks: residual blocks per resolution of `UNetInitializer`; not read for
            points.
        attention: sizes of the feature maps with self-attention in `UNetInitializer`; not read for
            points.
        dropout: dropout rate of `UNetInitializer`; not read for points.
        conditional: whether the networks take labels, if the data has them.
        levels: levels of the noise schedule.
        steps: Langevin steps per level.
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

    def build(self, data: Dataset, seed: int = 0) -> CDRL:
        """Return a new model for ``data``; the same seed gives the same weights.

        Raises:
            ValueError: images that are not square.
        """
        # Not at the top: the command line's help, which has these fields, loads no torch.
        import torch

        classes: Any = data.classes if self.conditional and data.labels is not None else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if data.is_images:
                return self._image_model(data, classes)
            return self._point_model(data, classes)

    def _image_model(self, data: Dataset, classes: Any) -> CDRL:
        from cdrl_fast.model.cdrl import CDRL
        from cdrl_fast.networks import ResNetEnergy, UNetInitializer

        channels, size, width = data.sample_shape
        if size != width:
            raise ValueError(
                f"model: expected square images, got {size}×{width} from {data.name!r}; set "
                "image_size or crop them"
            )
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

    def _point_model(self, data: Dataset, classes: Any) -> CDRL:
        from cdrl_fast.model.cdrl import CDRL
        from cdrl_fast.networks import MLPEnergy, MLPInitializer

        (dim,) = data.sample_shape
        energy = MLPEnergy(dim, self.energy_width, self.energy_multipliers, classes)
        initializer = None
        if self.initializer:
            initializer = MLPInitializer(dim, self.initializer_width, classes=classes)
        schedule = NoiseSchedule(self.levels, self.steps, kappa=1e-3, step_scale="constant")
        return CDRL(energy, initializer, schedule, sample_shape=data.sample_shape)


@checked
@dataclass(frozen=True)
class Recipe:
    """All settings of a training run.

    Attributes:
        data: the data set, as `load_data` takes it.
        image_size: images are resized to it; None keeps their size.
        held_out: fraction of the data that is kept from training; 0 trains on all of it.
        iterations: total of the run.
        start: model whose weights training starts from where the layers agree, as
            `CDRL.from_pretrained` takes it; None for new weights.
        model: sizes of the networks, see `ModelOptions`.
        training: see `TrainConfig`.

    Raises:
        ValueError: a value of another type.

    Examples:
        >>> from cdrl_fast.training.recipe import Recipe
        >>> Recipe(data="checkerboard", iterations=500).training.batch_size
        256
    """

    data: str = "digits"
    image_size: int | None = None
    held_out: float = 0.0
    iterations: int = 10_000
    start: str | None = None
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values."""
        return asdict(self)


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name: a shipped recipe's name, such as "digits", or the path of a JSON file.

    Returns:
        The recipe; fields that the file does not have keep their defaults.

    Raises:
        ValueError: no such recipe, broken JSON, an unknown field, or a value of another type.

    Examples:
        >>> from cdrl_fast.training.recipe import load_recipe
        >>> load_recipe("digits").data
        'digits'
    """
    shipped = sorted(f.stem for f in SHIPPED.glob("*.json"))
    path = SHIPPED / f"{name}.json" if str(name) in shipped else Path(name)
    if not path.is_file():
        raise ValueError(
            f"recipe: {name} is neither a shipped recipe ({', '.join(shipped)}) nor a JSON file"
        )
    try:
        return TypeAdapter(Recipe).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error, Recipe)}") from None


def recipe_of_run(folder: Path) -> dict[str, Any] | None:
    """Return a run's recipe as JSON-ready values, or None if the folder has none."""
    path = folder / RECIPE
    return load_recipe(path).to_dict() if path.is_file() else None
