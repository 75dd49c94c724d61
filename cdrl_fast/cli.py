"""The command line: ``cdrl-fast train | sample | inpaint | score | …``; --help names all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from cdrl_fast import report
from cdrl_fast.app import App
from cdrl_fast.bench import bench
from cdrl_fast.checkpoint import json_to_bytes, write_atomic, write_npz
from cdrl_fast.completions import Inpaint
from cdrl_fast.conditions import classes_in_turn
from cdrl_fast.data import Dataset
from cdrl_fast.demo import run_demo
from cdrl_fast.environment import about
from cdrl_fast.errors import CDRLError, CheckpointError
from cdrl_fast.evaluation import Judge, evaluate
from cdrl_fast.model import CDRL
from cdrl_fast.pages import PAGE, model_page
from cdrl_fast.processes import process_group, worker, worker_device
from cdrl_fast.quality import Evaluate, Tune
from cdrl_fast.recipe import RECIPE, ModelOptions, Recipe, load_recipe
from cdrl_fast.released import load_released_checkpoint
from cdrl_fast.sampler import Sampler
from cdrl_fast.saved import checkpoints_of
from cdrl_fast.schedule import NoiseSchedule
from cdrl_fast.scoring import Score
from cdrl_fast.shards import sample_to_folder
from cdrl_fast.sharing import Export
from cdrl_fast.train_config import TrainConfig
from cdrl_fast.trainer import Trainer
from cdrl_fast.words import device_of, labels_of, load_split, one_plan

PICTURES = (".png", ".jpg", ".npz")
"""What samples can be written to, values in the last one."""


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
            model=recipe.model,
            training=recipe.training,
        )

    def run(self) -> None:
        with process_group(device_of(self.device)) as device:
            self._run(device)

    def _run(self, device: torch.device) -> None:
        recipe = Recipe(
            self.data, self.image_size, self.held_out, self.iterations, self.model, self.training
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
                write_atomic(stored, json_to_bytes(recipe.to_dict()))
            return trainer
        if first:
            write_atomic(stored, json_to_bytes(recipe.to_dict()))
        model = self.model.build(train, self.training.seed).to(device)
        return Trainer(model, train, self.training)


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model; into a folder, under torchrun too, and to be taken up again."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    out: Path = Path("samples.png")
    """A picture of all samples; with .npz their values; without suffix a folder of shards, which
    are merged into samples.npy."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n", "--num"])] = 64
    """How many. Under torchrun -n, since it takes --n and --num for options of its own."""
    label: tuple[str, ...] = ()
    """A class name or number, or n of them; into a folder: classes to take in turn."""
    guidance: float = 0.0
    steps: tuple[str, ...] = ()
    """Langevin steps a level: one number, one for each level 1 … T, or tuned."""
    seed: int = 0
    batch_size: int | None = None
    denoise_scale: float = 1.0
    device: str = "auto"

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(worker_device(device_of(self.device)))
        options: dict[str, Any] = {
            "seed": self.seed,
            "steps": one_plan(self.steps),
            "guidance": self.guidance,
            "denoise_scale": self.denoise_scale,
            "progress": True,
        }
        label = labels_of(self.label, model)
        if self.out.suffix:
            _check_picture(self.out)
            options |= {"label": label, "batch_size": self.batch_size}
            _write_samples(Sampler(model).sample(self.n, **options).cpu(), self.out)
            print(f"{self.out}: {self.n} samples")
            return
        rank, workers = worker()
        options |= {"worker": rank, "workers": workers, "batch_size": self.batch_size or 512}
        in_turn = label if isinstance(label, list) or label is None else [label]
        done = sample_to_folder(Sampler(model), self.n, self.out, label=in_turn, **options)
        if done is not None:
            print(f"{done}: {self.n} samples")


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
class Bench:
    """Time a model's sampling here: plain eager, an afternoon's work, and this library."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    batch: int = 64
    steps: int | None = None
    """Langevin steps a level; as trained by default."""
    rounds: int = 5
    compiled: bool = False
    """Compile the afternoon's network; takes a while before it starts."""
    device: str = "auto"

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(device_of(self.device))
        print(
            bench(
                model,
                batch=self.batch,
                steps=self.steps,
                rounds=self.rounds,
                compiled=self.compiled,
            )
        )


@dataclass(frozen=True)
class About:
    """Versions, devices, and the backend of each operation with the reason for it."""

    def run(self) -> None:
        print(about())


@dataclass(frozen=True)
class Demo:
    """Draw digits from the shipped model, train a second model, write a report."""

    out: Path = Path("demo")
    iterations: int = 2000
    """Of the model that is trained."""

    def run(self) -> None:
        run_demo(self.out, self.iterations)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2: wrong input, 130: stopped by Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        train = Annotated[Train, tyro.conf.subcommand("train", default=Train.of(_recipe_of(words)))]
        command: Any = tyro.cli(
            train
            | Annotated[Sample, tyro.conf.subcommand("sample")]
            | Annotated[Inpaint, tyro.conf.subcommand("inpaint")]
            | Annotated[Score, tyro.conf.subcommand("score")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[Tune, tyro.conf.subcommand("tune")]
            | Annotated[Import, tyro.conf.subcommand("import")]
            | Annotated[Export, tyro.conf.subcommand("export")]
            | Annotated[Bench, tyro.conf.subcommand("bench")]
            | Annotated[About, tyro.conf.subcommand("about")]
            | Annotated[Demo, tyro.conf.subcommand("demo")]
            | Annotated[App, tyro.conf.subcommand("app")],
            prog="cdrl-fast",
            description="Energy-based models by cooperative diffusion recovery likelihood.",
            args=words,
        )
        command.run()
    except KeyboardInterrupt:
        print("stopped; take a training run up again with --resume auto", file=sys.stderr)
        return 130
    except (CDRLError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"cdrl-fast: {error}", file=sys.stderr)
        return 2
    return 0


def preview(trainer: Trainer, path: Path) -> None:
    """Writes a picture of 50 samples of the averaged model (1,000 points in 2-D)."""
    model = trainer.ema
    n = 50 if model.is_image else 1000
    samples = Sampler(model).sample(n, label=classes_in_turn(model, n))
    _write_samples(samples.cpu(), path.with_suffix(".png"))


def _recipe_of(words: list[str]) -> str:
    """The recipe named on the command line: its entries are the defaults that --help shows."""
    for index, word in enumerate(words):
        if word == "--recipe" and index + 1 < len(words):
            return words[index + 1]
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe=")
    return "digits"


def _check_picture(path: Path) -> None:
    """Raises ValueError before samples are drawn that could not be written there."""
    if path.suffix not in PICTURES:
        raise ValueError(
            f"out: expected {', '.join(PICTURES)}, or a folder's name without a suffix, got {path}"
        )
    if worker()[1] > 1:
        raise ValueError(f"out: several workers share a folder of shards, not {path}")


def _write_samples(samples: torch.Tensor, path: Path) -> None:
    if path.suffix == ".npz":
        write_npz(path, samples=samples)
    elif samples.dim() == 4:
        report.save_image_grid(samples, path, columns=10)
    else:
        report.scatter_figure(samples, f"{len(samples)} samples").savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
