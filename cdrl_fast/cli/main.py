"""The command line: ``cdrl-fast train``, ``sample``, ``bench`` …; ``--help`` lists all commands."""

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
from cdrl_fast.cli.options import parse_device
from cdrl_fast.cli.sample import Sample
from cdrl_fast.cli.score import Score
from cdrl_fast.cli.train import Train
from cdrl_fast.environment import about
from cdrl_fast.errors import CDRLError
from cdrl_fast.model.cdrl import CDRL


@dataclass(frozen=True)
class Bench:
    """Time sampling with eager PyTorch, hand-tuned PyTorch and this library."""

    model: str = "digits"
    """A shipped model, the folder of a model or run, or a Hub id."""
    batch: int = 64
    """Samples per call."""
    steps: int | None = None
    """Langevin steps per level; by default as in training."""
    rounds: int = 5
    """Timed calls of each contender."""
    compiled: bool = False
    """Compile the hand-tuned network with torch.compile, which takes a minute or more."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Print the table of `bench`."""
        model = CDRL.from_pretrained(self.model).to(parse_device(self.device))
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
    """Print versions, devices, and the backend of each operation with the reason for it."""

    def run(self) -> None:
        """Print `about`."""
        print(about())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: the command line without the program's name; None: ``sys.argv[1:]``.

    Returns:
        0 on success, 2 for wrong input, 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args == ["--version"]:
        print(f"cdrl-fast {__version__}")
        return 0
    try:
        defaults = Train.from_recipe(_recipe_name(args))
        train = Annotated[Train, tyro.conf.subcommand("train", default=defaults)]
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
            args=args,
        )
        command.run()
    except KeyboardInterrupt:
        print("stopped; --resume auto continues a training run", file=sys.stderr)
        return 130
    except (CDRLError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"cdrl-fast: {error}", file=sys.stderr)
        return 2
    return 0


def _recipe_name(args: list[str]) -> str:
    """Return the recipe on the command line, whose entries are the defaults that --help shows."""
    for index, arg in enumerate(args):
        if arg == "--recipe" and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith("--recipe="):
            return arg.removeprefix("--recipe=")
    return "digits"
