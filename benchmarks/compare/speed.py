"""Speed of two installations of the library, measured in strict turn.

    python benchmarks/compare/speed.py PYTHON_OLD PYTHON_NEW [--rounds N] [--out FILE]

One worker process per installation times the same calls. A round is old, new, new, old, so that
drift and cold caches fall on both alike. A row has the median times, the median of the rounds'
ratios old / new (above 1 the new one is faster) with a bootstrap 95 % interval, and whether its
lower end is at least 0.97. Exit status 1: a row's is not. Fresh workers start several times
(--starts), since the place of a process's memory changes its speed for its whole life.

A worker reads lines of JSON, [row, calls], and answers each with the seconds per call.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SHORTEST = 0.02
"""Seconds that a round of a row takes at least; faster calls are repeated."""
WARMUP = 3
RESAMPLES = 2000
LIMIT = 0.97


class Worker:
    """A process that times calls of one installation's library; use it in a with block."""

    def __init__(self, python: str) -> None:
        # Idle threads that spin would slow the other worker down.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about, self.rows = self._answer()

    def seconds(self, row: str, calls: int) -> float:
        """Return the mean seconds of some calls in a row."""
        self._process.stdin.write(json.dumps([row, calls]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> object:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args[0]}: the worker stopped; see its error above")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def work() -> None:
    """Time calls for the parent process until its pipe is closed."""
    from library import environment, location

    # Whatever the library prints must not end up between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    about = f"{location()}; {environment()}"
    calls = timed_calls()
    answer([about, list(calls)])
    for line in sys.stdin:
        row, repeats = json.loads(line)
        start = time.perf_counter()
        for _ in range(repeats):
            calls[row]()
        answer((time.perf_counter() - start) / repeats)


def timed_calls() -> dict[str, Callable[[], object]]:
    """Return the call of each row."""
    from library import make_trainer, small_network

    from cdrl_fast import CDRL, Sampler, langevin, normal

    sampler = Sampler(CDRL.from_pretrained("digits"))
    x = 2.0 * normal((64, 2), seed=0, draw=0)
    chain = partial(langevin, small_network(), x, steps=200, step_size=0.02)
    return {
        "sampling digits, batch 1": partial(sampler.sample, 1, label="7"),
        "sampling digits, batch 64": partial(sampler.sample, 64, label="7"),
        "langevin network, batch 64": chain,
        "training iteration, digits": make_trainer("digits").step,
    }


def measure(pythons: list[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds per call, (old, new), of each row and round with fresh workers."""
    with Worker(pythons[0]) as old, Worker(pythons[1]) as new:
        print(f"old: {old.about}\nnew: {new.about}", flush=True)
        pairs = {}
        for row in old.rows:
            once = min(worker.seconds(row, WARMUP) for worker in (new, old))
            calls = math.ceil(SHORTEST / once)
            pairs[row] = []
            for _ in range(rounds):
                # A worker is timed once after the other, with cold caches, and once after itself.
                times = [worker.seconds(row, calls) for worker in (old, new, new, old)]
                pairs[row].append(((times[0] + times[3]) / 2, (times[1] + times[2]) / 2))
    return pairs


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of the median."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pythons", nargs=2, metavar="PYTHON", help="old and new interpreter")
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds per row, of all starts together"
    )
    parser.add_argument("--starts", type=int, default=3, help="how often fresh workers start")
    parser.add_argument("--out", type=Path, help="JSON file to write: the rows")
    options = parser.parse_args()

    pairs: dict[str, list[tuple[float, float]]] = {}
    share = math.ceil(options.rounds / options.starts)
    for _ in range(options.starts):
        for row, results in measure(options.pythons, share).items():
            pairs.setdefault(row, []).extend(results)
    rows = {}
    print(f"{'':28}{'old':>12}{'new':>12}{'old / new':>12}  95 % interval")
    for row, results in pairs.items():
        old, new = (statistics.median(times) for times in zip(*results, strict=True))
        ratios = [a / b for a, b in results]
        ratio, (low, high) = statistics.median(ratios), interval(ratios)
        passed = low >= LIMIT
        verdict = f"lower end {'≥' if passed else '<'} {LIMIT}"
        print(
            f"{row:28}{old * 1e3:9.3f} ms{new * 1e3:9.3f} ms{ratio:12.3f}  "
            f"{low:.3f} to {high:.3f}  {verdict}"
        )
        rows[row] = {"old": old, "new": new, "ratio": ratio, "interval": (low, high)}
        rows[row] |= {"passed": passed, "ratios": ratios}
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["passed"] for row in rows.values()) else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        sys.exit(main())
