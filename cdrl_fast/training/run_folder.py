"""A training run's folder: its log, its checkpoints, and how a run is watched and stopped."""

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
from cdrl_fast.training.loggers import device_numbers, watch

LOG = "log.jsonl"
logger = logging.getLogger("cdrl_fast")


class RunFolder:
    """Writes what a run leaves behind, and survives what cannot be written.

    To be closed in the end.

    Args:
        path: made if it is not there. What a stopped run logged after ``iteration``, and what a
            killed one left of an unfinished checkpoint, is removed.
        config: its intervals, and how many checkpoints are kept.
        iteration: at which the run begins or goes on.
        floor: least seconds a sample, see `sample_seconds`.

    Raises:
        CheckpointError: the folder cannot be written to, or holds a run that is further on.
    """

    def __init__(self, path: Path, config: TrainConfig, iteration: int, floor: float) -> None:
        self.path, self._config, self._floor = path, config, floor
        self._unsaved = False
        self._saved_at = time.monotonic()
        self._logged: tuple[int, float] | None = None
        try:
            for part in ("previews", "checkpoints"):
                (path / part).mkdir(parents=True, exist_ok=True)
            for left in (path / "checkpoints").glob(".[0-9]*"):
                shutil.rmtree(left)
            for later in reversed(checkpoints_of(path)):
                if int(later.name) > iteration and _is_whole(later):
                    raise CheckpointError(
                        f"{path}: holds a run that is at iteration {int(later.name)}, this one is "
                        f"at {iteration}; resume that one, or use another folder"
                    )
            with tempfile.TemporaryFile(dir=path / "checkpoints"):
                pass
            self._cut_log(iteration)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot hold a training run: {error}") from error
        self._watch = watch(config.watch, path, iteration)

    def check_free_space(self, size: int) -> None:
        """Raises CheckpointError if there is no room for one checkpoint of ``size`` bytes more."""
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise CheckpointError(
                f"{self.path}: a checkpoint takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
                "free; make room or use another folder"
            )

    def losses(self, iteration: int, seconds: float, values: dict[str, float]) -> None:
        """Logs an iteration's figures, with the ``samples_per_second`` of training since the last,
        and which ``share_of_roofline`` that is: the least time it could have taken over what it took.

        Args:
            seconds: of training so far.
        """
        before, self._logged = self._logged, (iteration, seconds)
        if before is not None and iteration > before[0] and seconds > before[1]:
            rate = (iteration - before[0]) * self._config.batch_size / (seconds - before[1])
            values = {**values, "samples_per_second": round(rate, 3)}
            values["share_of_roofline"] = round(rate * self._floor, 4)
        self.log(iteration, seconds, {**values, **device_numbers()})

    def log(self, iteration: int, seconds: float, entry: dict[str, Any]) -> None:
        """Adds one line of JSON to the run's log, and shows it to who watches.

        Args:
            seconds: of training so far.
            entry: numbers by name, text, and "metrics", which are numbers.
        """
        numbers = {**entry, **entry.get("metrics", {})}
        known = {k: v for k, v in numbers.items() if isinstance(v, (int, float))}
        self._watch.numbers(iteration, known)
        for name, text in entry.items():
            if isinstance(text, str):
                self._watch.text(iteration, name, text)
        entry = {"iteration": iteration, "seconds": round(seconds, 3), **entry}

        def append() -> None:
            with (self.path / LOG).open("a") as file:
                file.write(json.dumps(entry) + "\n")

        self.attempt(append)

    def preview(self, iteration: int, write: Callable[[Path], None]) -> None:
        """Has a preview written, given its path without suffix, and shows it to who watches."""
        path = self.path / "previews" / f"{iteration:08d}"
        if self.attempt(lambda: write(path)):
            self._watch.picture(iteration, path.with_suffix(".png"))

    def attempt(self, write: Callable[[], None]) -> bool:
        """Whether something could be made and written; training is worth more than what could not.

        The averaged model's samples may leave the finite numbers early in a run.
        """
        try:
            write()
        except (OSError, CDRLError) as error:
            logger.warning("%s: not written: %s", self.path, error)
            return False
        return True

    def close(self) -> None:
        """After the last line."""
        self._watch.close()

    def checkpoint_due(self, *, retry: bool) -> bool:
        """By the clock, or because the last one failed and it is time for another try."""
        minutes = self._config.checkpoint_minutes
        return (self._unsaved and retry) or (
            minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        )

    def has(self, iteration: int) -> bool:
        """Whether there is a whole checkpoint of an iteration, as after a roll-back to it."""
        found = _is_whole(self._place(iteration))
        if found:
            self._saved_at = time.monotonic()
        return found

    def _place(self, iteration: int) -> Path:
        return self.path / "checkpoints" / f"{iteration:08d}"

    def checkpoint(self, iteration: int, save: Callable[[Path], object], *, last: bool) -> None:
        """Writes one and drops the oldest; where that fails, only the last one raises.

        Raises:
            CheckpointError: the last one could not be written; those before it are whole.
        """
        folder = self._place(iteration)
        try:
            save(folder)
            # Later ones are broken, or the run would not have begun here.
            mine = [f for f in checkpoints_of(self.path) if int(f.name) <= iteration]
            for old in mine[: -self._config.keep]:
                shutil.rmtree(old)
        except OSError as error:
            self._unsaved = True
            if last:
                raise CheckpointError(
                    f"{folder}: the last checkpoint could not be written: {error}"
                ) from error
            logger.warning("%s: not written, will be tried again: %s", folder, error)
        else:
            self._unsaved = False
            self._saved_at = time.monotonic()

    def newest(self) -> tuple[Path, dict[str, bytes]] | None:
        """The newest checkpoint that is whole and its verified files, or None."""
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
        kept = []
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
            if entry.get("iteration", 0) <= iteration:
                kept.append(line + "\n")
        write_atomic(path, "".join(kept).encode())


def _is_whole(folder: Path) -> bool:
    """Whether there is a checkpoint that can be read."""
    try:
        read_folder(folder)
    except CheckpointError:
        return False
    return True


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a wish; the second acts as usual."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether one has come."""
        return self._number is not None

    def raise_anyway(self) -> None:
        """KeyboardInterrupt after Ctrl-C, else SystemExit with SIGTERM's usual status.

        It may be another process to which one has come.
        """
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: Any) -> None:
        self._number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()
