"""Watching a training run: TensorBoard, or Weights & Biases."""

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


class Watch:
    """Shows nothing; what a watch has to offer.

    What fails while a run goes on, a full disk or a lost network, is warned of once and ends the
    watching, not the run.
    """

    def __init__(self) -> None:
        self._broken = False

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        """Curves' next points."""
        self._attempt(lambda: self._numbers(iteration, values))

    def text(self, iteration: int, name: str, text: str) -> None:
        """Something that has happened."""
        self._attempt(lambda: self._text(iteration, name, text))

    def picture(self, iteration: int, path: Path) -> None:
        """A preview, if there is one at ``path``."""
        if path.exists():
            self._attempt(lambda: self._picture(iteration, path))

    def close(self) -> None:
        """After the last of these; what was shown is kept."""
        self._attempt(self._close)

    def _attempt(self, show: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            show()
        except Exception as error:  # of somebody else's code, which training does not depend on
            self._broken = True
            logger.warning("the run is not watched any more: %s: %s", type(error).__name__, error)

    def _numbers(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def _text(self, iteration: int, name: str, text: str) -> None: ...

    def _picture(self, iteration: int, path: Path) -> None: ...

    def _close(self) -> None: ...


class TensorBoard(Watch):
    """Event files in ``tensorboard/`` of the run's folder.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__()
        optional_module("tensorboard", "tensorboard", "tensorboard")
        module = optional_module("torch.utils.tensorboard", "tensorboard", "tensorboard")
        # What a stopped run showed after its last checkpoint is hidden.
        self._writer: Any = module.SummaryWriter(folder / "tensorboard", purge_step=iteration + 1)

    def _numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def _text(self, iteration: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, iteration)

    def _picture(self, iteration: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))
        self._writer.add_image("samples", pixels, iteration, dataformats="HWC")

    def _close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Watch):
    """A run of the project "cdrl-fast", taken up again with its folder.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        super().__init__()
        self._wandb = optional_module("wandb", "wandb", "wandb")
        known = folder / "wandb-run"
        name = known.read_text() if known.exists() else secrets.token_hex(4)
        known.write_text(name)
        self._run: Any = self._wandb.init(
            project="cdrl-fast", name=folder.name, dir=str(folder), id=name, resume="allow"
        )

    def _numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def _text(self, iteration: int, name: str, text: str) -> None:
        self._run.alert(title=name, text=f"iteration {iteration}: {text}")

    def _picture(self, iteration: int, path: Path) -> None:
        self._run.log({"samples": self._wandb.Image(str(path))}, step=iteration)

    def _close(self) -> None:
        self._run.finish()


def watch(kind: str, folder: Path, iteration: int) -> Watch:
    """What shows a run in ``folder`` that begins or goes on at ``iteration``; see `TrainConfig`."""
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return kinds[kind](folder, iteration) if kind in kinds else Watch()


def device_numbers() -> dict[str, float]:
    """The current GPU's peak of allocated memory (GB) and its power (W); nothing without one.

    Power needs nvidia-ml-py.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    found = {"gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    with suppress(Exception):  # a GPU that does not tell; NVML has errors of its own
        found["gpu_power_w"] = torch.cuda.power_draw() / 1e3
    return found
