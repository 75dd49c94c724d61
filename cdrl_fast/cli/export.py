"""``cdrl-fast export`` and ``import``: share models, convert released checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from cdrl_fast.cli.options import ModelCommand, parse_device
from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.storage.card import ModelCard
from cdrl_fast.training.recipe import recipe_of_run

if TYPE_CHECKING:
    from cdrl_fast.model.cdrl import CDRL


@dataclass(frozen=True)
class Import:
    """Convert a checkpoint of the authors' released code to a model folder."""

    file: tyro.conf.Positional[Path]
    """Checkpoint of the released code."""
    folder: tyro.conf.Positional[Path]
    """Folder for the model."""
    image_size: int = 32
    """Side of the model's images in pixels."""
    schedule: NoiseSchedule | None = None
    """Noise schedule; by default that of the released models."""

    def run(self) -> None:
        """Convert the checkpoint and print where the model is."""
        from cdrl_fast import load_released_checkpoint

        model = load_released_checkpoint(
            self.file, image_size=self.image_size, schedule=self.schedule
        )
        model.save_pretrained(self.folder)
        print(f"{self.folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


@dataclass(frozen=True, kw_only=True)
class Export(ModelCommand):
    """Save a model with its model card to a folder or to the Hugging Face Hub."""

    out: Path | None = None
    """Folder for the model; its README.md, the card, is overwritten."""
    push: str | None = None
    """Hub repository OWNER/NAME; it is created if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    license: str | None = None
    """SPDX identifier of the weights' licence, such as apache-2.0."""
    about: str = ""
    """Text for the card: purpose, training data and its licence, limits."""
    device: str = "auto"
    """Device that draws the card's picture: auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Write or push the model and its card; print where they are."""
        if self.out is None and self.push is None:
            raise ValueError("export: expected --out FOLDER, --push OWNER/NAME or both")
        from cdrl_fast import CDRL

        model = CDRL.from_pretrained(self.model)
        card = self._card(model)
        if self.out is not None:
            print(f"{model.save_pretrained(self.out, card=card)}: model and card")
        if self.push is not None:
            print(model.push_to_hub(self.push, card=card, private=self.private))

    def _card(self, model: CDRL) -> ModelCard:
        from cdrl_fast import Sampler
        from cdrl_fast.report import image_grid
        from cdrl_fast.sampling.label_terms import cycled_classes
        from cdrl_fast.training.run_folder import LOG

        picture = None
        if model.is_image:
            sampler = Sampler(model, device=parse_device(self.device))
            picture = image_grid(sampler.sample(50, label=cycled_classes(model, 50)), columns=10)
        run = Path(self.model)
        return ModelCard(
            self.about, self.license, last_metrics(run / LOG), recipe_of_run(run), picture
        )


def last_metrics(path: Path) -> dict[str, Any]:
    """Return the newest metrics of a run's log, with their iteration; empty if there are none.

    Raises:
        DataError: a log damaged before its last line.
    """
    from cdrl_fast.report.training import read_log

    rows = read_log(path) if path.is_file() else []
    rows = [row for row in rows if "metrics" in row]
    return {"iteration": rows[-1]["iteration"], **rows[-1]["metrics"]} if rows else {}
