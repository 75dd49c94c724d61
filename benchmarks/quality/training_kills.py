"""Kill a training run repeatedly, and compare its final weights with an undisturbed run.

    python benchmarks/quality/training_kills.py --kills 30 --out FILE

``cdrl-fast train --resume auto`` is killed by SIGKILL at random moments, half of the times while it
writes a checkpoint, and started again; the last start runs to the end. Passes (status 0) if every
start resumed from the newest complete checkpoint and the final weights equal those of the
undisturbed run to the bit (on CPUs).
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cdrl_fast.environment import about
from cdrl_fast.storage.locate import checkpoints_of

SIZES: dict[str, str | int | list[int]] = {
    "energy-width": 16, "energy-multipliers": [1, 2], "energy-blocks": 1, "initializer-width": 16,
    "initializer-multipliers": [1, 1], "batch-size": 8, "preview-every": 0, "log-every": 1,
    "checkpoint-every": 10,
}  # fmt: skip


class Campaign:
    """A run that is killed repeatedly, and an undisturbed run.

    Args:
        folder: the folder for both runs.
        iterations: the iterations of each run.
        seed: the seed of the random moments.
    """

    def __init__(self, folder: Path, iterations: int, seed: int) -> None:
        self.undisturbed, self.killed = folder / "undisturbed", folder / "killed"
        self.iterations, self.moments = iterations, random.Random(seed)
        self.kills: list[dict[str, Any]] = []

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Start ``cdrl-fast train`` into a folder, on one thread."""
        arguments = ["train", "--recipe", "digits", "--out", str(out), "--resume", "auto"]
        for name, value in SIZES.items():
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *map(str, values)]
        arguments += ["--iterations", str(self.iterations)]
        program = (
            "import torch; torch.set_num_threads(1); from cdrl_fast.cli.main import main; main()"
        )
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, *, writing: bool, span: float) -> None:
        """Start the run and kill it within ``span`` seconds of its first new iteration.

        Args:
            writing: kill it during the next checkpoint after that moment, at most 5 ms after the
                unfinished folder exists.
            span: the longest time between the first new iteration and that moment.
        """
        before, log = self.newest(), self._log_file()
        process = self.start(self.killed)
        # A resumed run rewrites its log without the lines after the checkpoint.
        self._wait(lambda: self._log_file() != log and self.logged() > before, process)
        time.sleep(self.moments.uniform(0.0, span))
        if writing:
            checkpoints = self.killed / "checkpoints"
            self._wait(lambda: any(checkpoints.glob(".*")), process)
            time.sleep(self.moments.uniform(0.0, 0.005))
        process.kill()
        if process.wait() != -9:
            raise RuntimeError("the run ended before it could be killed; use more --iterations")
        unfinished = [p.name for p in (self.killed / "checkpoints").glob(".*")]
        done, newest = self.logged(), self.newest()
        self.kills.append(
            {"iteration": done, "newest_checkpoint": newest, "unfinished_checkpoint": unfinished}
        )
        print(f"kill {len(self.kills)}: {self.kills[-1]}", flush=True)

    def caught(self) -> int:
        """Return the number of kills that interrupted the writing of a checkpoint."""
        return sum(bool(kill["unfinished_checkpoint"]) for kill in self.kills)

    def logged(self) -> int:
        """Return the last iteration in the killed run's log, or 0 without a log."""
        log = self.killed / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["iteration"])
            except json.JSONDecodeError:  # the last line may be incomplete
                continue
        return 0

    def _log_file(self) -> int:
        log = self.killed / "log.jsonl"
        return log.stat().st_ino if log.exists() else 0

    def newest(self) -> int:
        """Return the iteration of the killed run's newest checkpoint, or 0 without one."""
        return max((int(f.name) for f in checkpoints_of(self.killed)), default=0)

    def finish(self) -> bool:
        """Run both to their end; return whether their weights are the same."""
        for out in (self.undisturbed, self.killed):
            if self.start(out).wait() != 0:
                raise RuntimeError(f"{out}: the run failed")
        name = f"{self.iterations:08d}"
        files = ("model.safetensors", "training.safetensors")
        runs = [[(o / "checkpoints" / name / f).read_bytes() for f in files]
                for o in (self.undisturbed, self.killed)]  # fmt: skip
        return runs[0] == runs[1]

    def _wait(self, ready: Any, process: subprocess.Popen[bytes]) -> None:
        while not ready():
            if process.poll() is not None:
                raise RuntimeError(f"the run ended by itself, status {process.returncode}")
            time.sleep(0.0005)


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument(
        "--span", type=float, default=3.0, help="longest seconds from start to kill"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/training-kills.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.iterations, options.seed)
        for number in range(options.kills):
            # A checkpoint may be complete before the kill; half of all kills must interrupt one.
            campaign.kill(writing=2 * campaign.caught() <= number, span=options.span)
        same = campaign.finish()
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "kills": options.kills,
        "kills_that_left_an_unfinished_checkpoint": campaign.caught(),
        "iterations": options.iterations,
        "same_weights_and_state_to_the_bit": same,
        "each": campaign.kills,
        "versions": about().versions,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    outcome = "the same weights" if same else "DIFFERENT WEIGHTS"
    print(f"{options.out}: {outcome} after {options.kills} kills")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
