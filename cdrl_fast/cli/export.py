"""``cdrl-fast export`` and ``import``: models to share, and those of the authors' code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from cdrl_fast.cli.options import device_of
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.released import load_released_checkpoint
from cdrl_fast.model.schedule import NoiseSchedule
from cdrl_fast.report import image_grid
from cdrl_fast.report.training import read_log
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.storage.card import ModelCard
from cdrl_fast.training.recipe import recipe_of_run
from cdrl_fast.training.run_folder import LOG


@dataclass(frozen=True)
class Import:
    """Convert a checkpoint of the authors' released code into a model folder."""

    file: tyro.conf.Positional[Path]
    folder: tyro.conf.Positional[Path]
    image_size: int = 32
    schedule: NoiseSchedule | None = None

    def run(self) -> None:
        model = load_released_checkpoint(
            self.file, image_size=self.image_size, schedule=self.schedule
        )
        model.save_pretrained(self.folder)
        print(f"{self.folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


@dataclass(frozen=True)
class Export:
    """Write a model with its card, a picture and a run's recipe in it, or push it to the Hub."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    out: Path | None = None
    """A folder for the model; its README.md is the card, and is replaced."""
    push: str | None = None
    """A repository of the Hugging Face Hub, owner/name, made if it is not there."""
    private: bool = False
    """Of a repository that is made."""
    license: str | None = None
    """SPDX identifier of the weights' licence, such as apache-2.0."""
    about: str = ""
    """What the model is for, its data and that data's licence, its limits."""
    device: str = "auto"
    """Where the picture's samples are drawn; auto: a GPU where there is one."""

    def run(self) -> None:
        if self.out is None and self.push is None:
            raise ValueError("export: expected --out FOLDER, --push OWNER/NAME or both")
        model = CDRL.from_pretrained(self.model)
        card = self._card(model)
        if self.out is not None:
            print(f"{model.save_pretrained(self.out, card=card)}: model and card")
        if self.push is not None:
            print(model.push_to_hub(self.push, card=card, private=self.private))

    def _card(self, model: CDRL) -> ModelCard:
        picture = None
        if model.is_image:
            sampler = Sampler(model, device=device_of(self.device))
            picture = image_grid(sampler.sample(50, label=cycled_classes(model, 50)), columns=10)
        run = Path(self.model)
        return ModelCard(
            self.about, self.license, last_metrics(run / LOG), recipe_of_run(run), picture
        )


def last_metrics(path: Path) -> dict[str, Any]:
    """The newest metrics of a run's log, with their iteration; empty where there are none.

    Raises:
        DataError: a log damaged before its last line.
    """
    rows = read_log(path) if path.is_file() else []
    measured = [row for row in rows if "metrics" in row]
    return {"iteration": measured[-1]["iteration"], **measured[-1]["metrics"]} if measured else {}
