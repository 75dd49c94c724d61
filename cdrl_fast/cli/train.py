"""``cdrl-fast train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from cdrl_fast.cli.options import device_of, load_split
from cdrl_fast.cli.sample import write_samples
from cdrl_fast.data import Dataset
from cdrl_fast.errors import CDRLError, CheckpointError
from cdrl_fast.evaluation.judge import Judge, evaluate
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.report.model import PAGE, model_page
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.storage.folder import json_to_bytes, write_atomic
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import process_group, worker
from cdrl_fast.training.recipe import RECIPE, ModelOptions, Recipe, load_recipe
from cdrl_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Train:
    """Train a model; Ctrl-C stops it at a checkpoint, --resume auto takes it up again.

    Under torchrun several processes share every batch; see --shard.
    """

    out: Path
    """Folder of the run: log, previews, checkpoints, and in the end report.html."""
    recipe: str = "digits"
    """A shipped recipe or a JSON file; every other option overrides one of its entries."""
    data: str = "digits"
    """digits, checkerboard, idx:FOLDER, folder:PATH, npz:FILE, npy:FILE, cifar10:FOLDER,
    imagenet32:FOLDER or hub:NAME."""
    image_size: int | None = None
    held_out: float = 0.0
    iterations: int = 10_000
    start: str | None = None
    """A shipped model, a folder or a Hub id, whose weights training starts from."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the newest checkpoint in the folder, if there is one."""
    device: str = "auto"
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    training: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainConfig)

    @classmethod
    def of(cls, name: str) -> Train:
        """The command with a recipe's entries as defaults."""
        recipe = load_recipe(name)
        return cls(
            out=tyro.MISSING,
            recipe=name,
            data=recipe.data,
            image_size=recipe.image_size,
            held_out=recipe.held_out,
            iterations=recipe.iterations,
            start=recipe.start,
            model=recipe.model,
            training=recipe.training,
        )

    def run(self) -> None:
        with process_group(device_of(self.device)) as device:
            self._run(device)

    def _run(self, device: torch.device) -> None:
        recipe = Recipe(
            data=self.data,
            image_size=self.image_size,
            held_out=self.held_out,
            iterations=self.iterations,
            start=self.start,
            model=self.model,
            training=self.training,
        )
        train, held_out = load_split(self.data, self.image_size, self.held_out)
        compared = held_out is not None and train.labels is not None
        if train.is_images and self.training.metrics_every and not compared:
            raise ValueError(
                "metrics_every: images are compared with held-out ones, in the features of a "
                "classifier; pass --held-out, and data with labels"
            )
        trainer = self._trainer(recipe, train, device)
        checked = held_out if train.is_images else train
        judge = cache(lambda: Judge(train))
        trainer.fit(
            self.iterations,
            folder=self.out,
            progress=True,
            preview=preview,
            evaluate=lambda t: evaluate(
                t.ema, train, checked, samples=500, guidance=(0.0,), judge=judge()
            ),
        )
        if worker()[0] == 0:
            print(
                f"{self.out}: {trainer.iteration} iterations, {trainer.seconds:.0f} s of training"
            )
            self._page(trainer)

    def _page(self, trainer: Trainer) -> None:
        try:
            model_page(trainer.ema, title=str(self.out), run=self.out).write(self.out / PAGE)
        except (ImportError, CDRLError, OSError) as error:
            # The run itself is safe by now.
            print(f"no {PAGE}: {error}", file=sys.stderr)

    def _trainer(self, recipe: Recipe, train: Dataset, device: torch.device) -> Trainer:
        stored, first = self.out / RECIPE, worker()[0] == 0
        if checkpoints_of(self.out):
            if self.resume == "never":
                raise CheckpointError(
                    f"{self.out} holds a run; pass --resume auto to go on, or another --out"
                )
            before = load_recipe(stored)
            if (before.data, before.model) != (recipe.data, recipe.model):
                raise CheckpointError(
                    f"{self.out}: the run has other data or networks; see {stored}"
                )
            trainer = Trainer.resume(self.out, train, config=self.training, device=device)
            if first:
                now = replace(recipe, start=before.start)
                write_atomic(stored, json_to_bytes(now.to_dict()))
            return trainer
        model = self.model.build(train, self.training.seed).to(device)
        if self.start is not None:
            kept = model.warm_start(CDRL.from_pretrained(self.start))
            if first:
                told = f", but for {', '.join(kept)}" if kept else ""
                print(f"{self.out}: starts with the weights of {self.start}{told}")
        if first:
            write_atomic(stored, json_to_bytes(recipe.to_dict()))
        return Trainer(model, train, self.training)


def preview(trainer: Trainer, path: Path) -> None:
    """Writes a picture of 50 samples of the averaged model (1,000 points in 2-D)."""
    model = trainer.ema
    n = 50 if model.is_image else 1000
    samples = Sampler(model).sample(n, label=cycled_classes(model, n))
    write_samples(samples.cpu(), path.with_suffix(".png"))
