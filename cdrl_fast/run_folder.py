"""A training run's folder: its log, its checkpoints, and how a run is watched and stopped."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdrl_fast import checkpoint

LOG = "log.jsonl"


def drop_old_checkpoints(run: Path, keep: int) -> None:
    """Keeps the newest ``keep`` checkpoints of a run."""
    folders = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda f: int(f.name))
    for folder in folders[:-keep]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def append_log(run: Path, entry: dict[str, Any]) -> None:
    """Adds one line of JSON to the run's log."""
    with (run / LOG).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def cut_log(run: Path, iteration: int) -> None:
    """Drops what a stopped run logged after the checkpoint that is being resumed."""
    path = run / LOG
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
    checkpoint.write_atomic(path, "".join(kept).encode())


class Interrupt:
    """Turns the first Ctrl-C into a wish; the second raises as usual."""

    def __init__(self) -> None:
        self.wanted = False
        self._previous: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, self._previous)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


@contextmanager
def training_bar(show: bool, done: int, total: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress bar over iterations; the callable advances it by one."""
    if not show:
        yield lambda log: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=done, desc="training", unit="it") as bar:

        def advance(log: dict[str, float]) -> None:
            bar.set_postfix(gap=f"{log['energy_gap']:.2e}", refresh=False)
            bar.update()

        yield advance
