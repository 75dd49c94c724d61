"""A training run's folder: log, previews and checkpoints; and the signals that stop a run."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdrl_fast.errors import CDRLError, CheckpointError
from cdrl_fast.storage.folder import read_folder, write_atomic
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.loggers import gpu_stats, open_logger

LOG = "log.jsonl"
logger = logging.getLogger("cdrl_fast")


class RunFolder:
    """The folder of a training run, to which its log, previews and checkpoints are written.

    Writes that fail are logged as warnings and do not stop training, except for the last
    checkpoint. Call `close` in the end.

    Args:
        path: the folder; created if it does not exist. Lines that an interrupted run logged after
            ``iteration``, and unfinished checkpoints, are removed.
        config: its intervals and the number of checkpoints to keep are read.
        iteration: updates done when the run starts or resumes.
        roofline: shortest possible time, in seconds per sample, see `roofline_seconds`.

    Raises:
        CheckpointError: the folder cannot be written to, or has a run that is further on.
        ImportError: the package of ``config.watch`` is not installed.
    """

    def __init__(self, path: Path, config: TrainConfig, iteration: int, roofline: float) -> None:
        self.path, self._config, self._roofline = path, config, roofline
        self._unsaved = False
        self._saved_at = time.monotonic()
        self._logged: tuple[int, float] | None = None
        try:
            for part in ("previews", "checkpoints"):
                (path / part).mkdir(parents=True, exist_ok=True)
            for unfinished in (path / "checkpoints").glob(".[0-9]*"):
                shutil.rmtree(unfinished)
            for checkpoint in reversed(checkpoints_of(path)):
                if int(checkpoint.name) > iteration and _is_readable(checkpoint):
                    raise CheckpointError(
                        f"{path}: has a run that is at iteration {int(checkpoint.name)}, this one "
                        f"is at {iteration}; resume that one, or use another folder"
                    )
            with tempfile.TemporaryFile(dir=path / "checkpoints"):
                pass
            self._cut_log(iteration)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot write a training run here: {error}; use another folder"
            ) from error
        self._logger = open_logger(config.watch, path, iteration)

    def check_free_space(self, size: int) -> None:
        """Check that a checkpoint of ``size`` bytes fits on the disk.

        Raises:
            CheckpointError: less is free.
        """
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise CheckpointError(
                f"{self.path}: a checkpoint takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
                "free; free some space or use another folder"
            )

    def log_losses(self, iteration: int, seconds: float, values: dict[str, float]) -> None:
        """Log an iteration's losses and norms, with the speed since the last call.

        ``samples_per_second`` is that speed, ``share_of_roofline`` its share of the largest
        possible one, 1 / roofline.

        Args:
            iteration: updates done so far.
            seconds: training time so far.
            values: losses and norms by name.
        """
        before, self._logged = self._logged, (iteration, seconds)
        if before is not None and iteration > before[0] and seconds > before[1]:
            rate = (iteration - before[0]) * self._config.batch_size / (seconds - before[1])
            values = {**values, "samples_per_second": round(rate, 3)}
            values["share_of_roofline"] = round(rate * self._roofline, 4)
        self.log(iteration, seconds, {**values, **gpu_stats()})

    def log(self, iteration: int, seconds: float, entry: dict[str, Any]) -> None:
        """Append one line of JSON to the run's log, and pass it to the logger.

        Args:
            iteration: updates done so far.
            seconds: training time so far.
            entry: numbers and texts by name; under "metrics" a dict of more numbers.
        """
        flat = {**entry, **entry.get("metrics", {})}
        scalars = {k: v for k, v in flat.items() if isinstance(v, (int, float))}
        self._logger.scalars(iteration, scalars)
        for name, text in entry.items():
            if isinstance(text, str):
                self._logger.text(iteration, name, text)
        entry = {"iteration": iteration, "seconds": round(seconds, 3), **entry}

        def append() -> None:
            with (self.path / LOG).open("a") as file:
                file.write(json.dumps(entry) + "\n")

        self.attempt(append)

    def preview(self, iteration: int, write: Callable[[Path], None]) -> None:
        """Call ``write`` with the preview's path without suffix, and pass a PNG to the logger."""
        path = self.path / "previews" / f"{iteration:08d}"
        if self.attempt(lambda: write(path)):
            self._logger.image(iteration, path.with_suffix(".png"))

    def attempt(self, write: Callable[[], None]) -> bool:
        """Call ``write``; return whether it succeeded.

        An OSError or CDRLError becomes a warning, so that training goes on. Previews, for example,
        may fail early in a run, when the averaged model's samples become non-finite (NaN or Inf).
        """
        try:
            write()
        except (OSError, CDRLError) as error:
            logger.warning("%s: not written: %s", self.path, error)
            return False
        return True

    def close(self) -> None:
        """Close the logger."""
        self._logger.close()

    def checkpoint_due(self, *, retry: bool) -> bool:
        """Return whether checkpoint_minutes have passed, or a failed write is to be retried.

        Args:
            retry: whether a failed write is retried now.
        """
        minutes = self._config.checkpoint_minutes
        return (self._unsaved and retry) or (
            minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        )

    def has_checkpoint(self, iteration: int) -> bool:
        """Return whether there is a complete checkpoint, as after a roll-back to ``iteration``."""
        readable = _is_readable(self._checkpoint_path(iteration))
        if readable:
            self._saved_at = time.monotonic()
        return readable

    def _checkpoint_path(self, iteration: int) -> Path:
        return self.path / "checkpoints" / f"{iteration:08d}"

    def checkpoint(self, iteration: int, save: Callable[[Path], object], *, last: bool) -> None:
        """Write a checkpoint and delete the oldest ones, so that ``config.keep`` remain.

        Args:
            iteration: updates done so far.
            save: called with the checkpoint's folder.
            last: whether it is the run's last checkpoint; then a failure raises.

        Raises:
            CheckpointError: the last checkpoint could not be written; earlier ones are complete.
        """
        folder = self._checkpoint_path(iteration)
        try:
            save(folder)
            # Checkpoints of later iterations are corrupt, or the run would have resumed from them.
            valid = [f for f in checkpoints_of(self.path) if int(f.name) <= iteration]
            for old in valid[: -self._config.keep]:
                shutil.rmtree(old)
        except OSError as error:
            self._unsaved = True
            if last:
                raise CheckpointError(
                    f"{folder}: the last checkpoint could not be written: {error}"
                ) from error
            logger.warning("%s: not written, will be retried: %s", folder, error)
        else:
            self._unsaved = False
            self._saved_at = time.monotonic()

    def newest_checkpoint(self) -> tuple[Path, dict[str, bytes]] | None:
        """Return the newest complete checkpoint and its verified files, or None."""
        for folder in reversed(checkpoints_of(self.path)):
            try:
                return folder, read_folder(folder)
            except CheckpointError as error:
                logger.warning("%s", error)
        return None

    def _cut_log(self, iteration: int) -> None:
        path = self.path / LOG
        if not path.exists():
            return
        lines = []
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a killed run can leave half a line
                continue
            if entry.get("iteration", 0) <= iteration:
                lines.append(line + "\n")
        write_atomic(path, "".join(lines).encode())


def _is_readable(folder: Path) -> bool:
    try:
        read_folder(folder)
    except CheckpointError:
        return False
    return True


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM sets a flag; the second acts as usual."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    def reraise(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C, else SystemExit with SIGTERM's usual status.

        The signal may have arrived in another process of the group.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: Any) -> None:
        self._signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()
