"""The command line: ``cdrl-fast train | sample | inpaint | score | …``; --help names all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from cdrl_fast import __version__
from cdrl_fast.app.page import App
from cdrl_fast.cli.bench import bench
from cdrl_fast.cli.demo import Demo
from cdrl_fast.cli.evaluate import Evaluate, Tune
from cdrl_fast.cli.export import Export, Import
from cdrl_fast.cli.inpaint import Inpaint
from cdrl_fast.cli.options import device_of
from cdrl_fast.cli.sample import Sample
from cdrl_fast.cli.score import Score
from cdrl_fast.cli.train import Train
from cdrl_fast.environment import about
from cdrl_fast.errors import CDRLError
from cdrl_fast.model.cdrl import CDRL


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (2: wrong input, 130: stopped by Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"cdrl-fast {__version__}")
        return 0
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


def _recipe_of(words: list[str]) -> str:
    """The recipe named on the command line: its entries are the defaults that --help shows."""
    for index, word in enumerate(words):
        if word == "--recipe" and index + 1 < len(words):
            return words[index + 1]
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe=")
    return "digits"
