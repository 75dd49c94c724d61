"""The command line: ``cdrl-fast train``, ``sample``, ``bench`` …; ``--help`` lists all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cdrl_fast import __version__
from cdrl_fast._lazy import optional_module
from cdrl_fast.cli.evaluate import Evaluate, Tune
from cdrl_fast.cli.export import Export, Import
from cdrl_fast.cli.inpaint import Inpaint
from cdrl_fast.cli.options import ModelCommand
from cdrl_fast.cli.sample import Sample
from cdrl_fast.cli.score import Score
from cdrl_fast.cli.train import Train
from cdrl_fast.errors import CDRLError


@dataclass(frozen=True, kw_only=True)
class Bench(ModelCommand):
    """Time sampling with eager PyTorch, hand-tuned PyTorch and this library."""

    batch: int = 64
    """Samples per call."""
    steps: int | None = None
    """Langevin steps per level; by default as in training."""
    rounds: int = 5
    """Timed calls of each contender."""
    compiled: bool = False
    """Compile the hand-tuned network with torch.compile, which takes a minute or more."""

    def run(self) -> None:
        """Print the table of `bench`."""
        from cdrl_fast.cli.bench import bench

        model, steps = self.load_model(), self.steps
        print(
            bench(model, batch=self.batch, steps=steps, rounds=self.rounds, compiled=self.compiled)
        )


@dataclass(frozen=True)
class About:
    """Print versions, devices, and the backend of each operation with the reason for it."""

    def run(self) -> None:
        """Print `about`."""
        from cdrl_fast import about

        print(about())


@dataclass(frozen=True, kw_only=True)
class App(ModelCommand):
    """Try a model in the browser: sample, complete, compose and score images."""

    port: int = 7860
    """Port of the page at http://127.0.0.1."""
    share: bool = False
    """Create a public link through gradio, open to everyone who has it."""
    open: bool = False
    """Open the page in the browser."""

    def run(self) -> None:
        """Serve the page until Ctrl-C."""
        from cdrl_fast.app.page import build_app, launch

        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        optional_module("gradio", "gradio", "app")
        page = build_app(self.load_model())
        try:
            launch(page, port=self.port, share=self.share, inbrowser=self.open)
        finally:
            page.close(verbose=False)  # also after Ctrl-C: gradio would leave its queue running


@dataclass(frozen=True)
class Demo:
    """Draw digits from the shipped model, train a small second model, write a page."""

    out: Path = Path("demo")
    """Folder for the pictures and the page, index.html."""
    iterations: int = 2000
    """Training iterations of the second model."""

    def run(self) -> None:
        """Run the demo."""
        from cdrl_fast.cli.demo import run_demo

        run_demo(self.out, self.iterations)


Others = Sample | Inpaint | Score | Evaluate | Tune | Import | Export | Bench | About | Demo | App


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
        command: Any = tyro.cli(
            Annotated[Train, tyro.conf.subcommand(default=defaults)] | Others,
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
