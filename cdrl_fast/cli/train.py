"""``cdrl-fast train``: train a model from a recipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cdrl_fast.cli.options import load_split, parse_device
from cdrl_fast.cli.sample import write_samples
from cdrl_fast.errors import CDRLError, CheckpointError
from cdrl_fast.storage.folder import json_to_bytes, write_atomic
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.recipe import RECIPE, ModelOptions, Recipe, load_recipe

if TYPE_CHECKING:
    import torch

    from cdrl_fast.data import Dataset
    from cdrl_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Train:
    """Train a model, also under torchrun; Ctrl-C saves it, --resume auto continues."""

    out: Path
    """Folder for the log, previews, checkpoints and, at the end, report.html."""
    recipe: str = "digits"
    """A shipped recipe or a JSON file; the other options override its entries."""
    data: str = "digits"
    """{idx,folder,cifar10,imagenet32}:FOLDER, {npz,npy}:FILE, hub:NAME, digits or checkerboard."""
    image_size: int | None = None
    """Side in pixels that images are resized to; by default they keep their size."""
    held_out: float = 0.0
    """Share of the data that is not trained on but compared with samples."""
    iterations: int = 10_000
    """Iterations of the whole run, those before a resume included."""
    start: str | None = None
    """Model whose weights training starts from: a shipped model, a folder or a Hub id."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue from the newest checkpoint in --out, if there is one."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    training: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainConfig)

    @classmethod
    def from_recipe(cls, name: str) -> Train:
        """Return the command with a recipe's entries as defaults."""
        return cls(out=tyro.MISSING, recipe=name, **vars(load_recipe(name)))

    def run(self) -> None:
        """Train, or continue a run; write its page at the end."""
        from cdrl_fast.training.distributed import process_group

        with process_group(parse_device(self.device)) as device:
            self._run(device)

    def _run(self, device: torch.device) -> None:
        from cdrl_fast.evaluation.judge import Judge, evaluate
        from cdrl_fast.training.distributed import worker

        recipe = Recipe(**{entry.name: getattr(self, entry.name) for entry in fields(Recipe)})
        train, held_out = load_split(self.data, self.image_size, self.held_out)
        comparable = held_out is not None and train.labels is not None
        if train.is_images and self.training.metrics_every and not comparable:
            raise ValueError(
                "metrics_every: metrics of images need held-out images and a classifier; pass "
                "--held-out, and data with labels"
            )
        trainer = self._trainer(recipe, train, device)
        evaluation_data = held_out if train.is_images else train
        judge = cache(lambda: Judge(train))
        trainer.fit(
            self.iterations,
            folder=self.out,
            progress=True,
            preview=preview,
            evaluate=lambda t: evaluate(
                t.ema, train, evaluation_data, samples=500, guidance=(0.0,), judge=judge()
            ),
        )
        if worker()[0] == 0:
            print(
                f"{self.out}: {trainer.iteration} iterations, {trainer.seconds:.0f} s of training"
            )
            self._write_page(trainer)

    def _write_page(self, trainer: Trainer) -> None:
        from cdrl_fast.report.model import PAGE, model_page

        try:
            model_page(trainer.ema, title=str(self.out), run=self.out).write(self.out / PAGE)
        except (ImportError, CDRLError, OSError) as error:
            # The checkpoints are complete, so the run has succeeded without its page.
            print(f"no {PAGE}: {error}", file=sys.stderr)

    def _trainer(self, recipe: Recipe, train: Dataset, device: torch.device) -> Trainer:
        from cdrl_fast import CDRL, Trainer
        from cdrl_fast.training.distributed import worker

        recipe_file, first = self.out / RECIPE, worker()[0] == 0
        if checkpoints_of(self.out):
            if self.resume == "never":
                raise CheckpointError(
                    f"out: {self.out} already contains a run; pass --resume auto to continue it, "
                    "or another --out"
                )
            before = load_recipe(recipe_file)
            if (before.data, before.model) != (recipe.data, recipe.model):
                raise CheckpointError(
                    f"{self.out}: the run has other data or networks, see {recipe_file}; pass "
                    "its options or another --out"
                )
            trainer = Trainer.resume(self.out, train, config=self.training, device=device)
            if first:
                continued = replace(recipe, start=before.start)
                write_atomic(recipe_file, json_to_bytes(continued.to_dict()))
            return trainer
        model = self.model.build(train, self.training.seed).to(device)
        if self.start is not None:
            unmatched = model.warm_start(CDRL.from_pretrained(self.start))
            if first:
                exceptions = f", except {', '.join(unmatched)}" if unmatched else ""
                print(f"{self.out}: starts with the weights of {self.start}{exceptions}")
        if first:
            write_atomic(recipe_file, json_to_bytes(recipe.to_dict()))
        return Trainer(model, train, self.training)


def preview(trainer: Trainer, path: Path) -> None:
    """Write a picture of 50 samples of the averaged model (1,000 points in 2-D)."""
    from cdrl_fast import Sampler
    from cdrl_fast.sampling.label_terms import cycled_classes

    model = trainer.ema
    n = 50 if model.is_image else 1000
    samples = Sampler(model).sample(n, label=cycled_classes(model, n))
    write_samples(samples.cpu(), path.with_suffix(".png"))
