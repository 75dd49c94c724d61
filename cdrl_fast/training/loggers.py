"""Loggers of a training run: TensorBoard and Weights & Biases."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cdrl_fast._lazy import optional_module

logger = logging.getLogger("cdrl_fast")


class RunLogger:
    """A logger that shows nothing, and the interface of those that do.

    The first error during a run, such as a full disk or a lost network, is logged as a warning; it
    stops this logger, but not the run.
    """

    def __init__(self) -> None:
        self._stopped = False

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each name."""
        self._attempt(lambda: self._scalars(iteration, values))

    def text(self, iteration: int, name: str, text: str) -> None:
        """Show the text of an event, such as a skipped iteration."""
        self._attempt(lambda: self._text(iteration, name, text))

    def image(self, iteration: int, path: Path) -> None:
        """Show the preview at ``path``, if there is one."""
        if path.exists():
            self._attempt(lambda: self._image(iteration, path))

    def close(self) -> None:
        """Finish writing; nothing is logged after this."""
        self._attempt(self._close)

    def _attempt(self, write: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            write()
        except Exception as error:  # other libraries raise errors of any class
            self._stopped = True
            logger.warning(
                "%s stopped, training goes on: %s: %s",
                type(self).__name__,
                type(error).__name__,
                error,
            )

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def _text(self, iteration: int, name: str, text: str) -> None: ...

    def _image(self, iteration: int, path: Path) -> None: ...

    def _close(self) -> None: ...


class TensorBoardLogger(RunLogger):
    """A writer of event files in the folder ``tensorboard`` of the run.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__()
        optional_module("tensorboard", "tensorboard", "tensorboard")
        module = optional_module("torch.utils.tensorboard", "tensorboard", "tensorboard")
        # Hides what an interrupted run logged after its last checkpoint.
        self._writer: Any = module.SummaryWriter(folder / "tensorboard", purge_step=iteration + 1)

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def _text(self, iteration: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, iteration)

    def _image(self, iteration: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))
        self._writer.add_image("samples", pixels, iteration, dataformats="HWC")

    def _close(self) -> None:
        self._writer.close()


class WandbLogger(RunLogger):
    """A run of the project "cdrl-fast" at Weights & Biases.

    The run's id is stored in its folder, so that a resumed run continues the same curves.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__()
        self._wandb = optional_module("wandb", "wandb", "wandb")
        file = folder / "wandb-run"
        run_id = file.read_text() if file.exists() else secrets.token_hex(4)
        file.write_text(run_id)
        self._run: Any = self._wandb.init(
            project="cdrl-fast", name=folder.name, dir=str(folder), id=run_id, resume="allow"
        )

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def _text(self, iteration: int, name: str, text: str) -> None:
        self._run.alert(title=name, text=f"iteration {iteration}: {text}")

    def _image(self, iteration: int, path: Path) -> None:
        self._run.log({"samples": self._wandb.Image(str(path))}, step=iteration)

    def _close(self) -> None:
        self._run.finish()


def open_logger(watch: str, folder: Path, iteration: int) -> RunLogger:
    """Return the logger of a run that starts or resumes in ``folder`` at ``iteration``.

    Args:
        watch: as in `TrainConfig`.
        folder: the run's folder.
        iteration: updates done so far.

    Raises:
        ImportError: the logger's package is not installed.
    """
    loggers = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
    return loggers[watch](folder, iteration) if watch in loggers else RunLogger()


def gpu_stats() -> dict[str, float]:
    """Return the current GPU's peak of allocated memory (GB) and its power (W).

    The power needs nvidia-ml-py; without a GPU in use the dict is empty.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    stats = {"gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    with suppress(Exception):  # some GPUs do not report it; NVML has its own error classes
        stats["gpu_power_w"] = torch.cuda.power_draw() / 1e3
    return stats
