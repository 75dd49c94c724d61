"""Measures what every GPU figure of this library is held against.

    python scripts/gpu_baseline.py --out benchmarks/results/gpu-baseline.json

Ceilings (copy bandwidth, matrix rates), the convolutions of the paper's network in cuDNN, the plain
reference chain and training iteration, and what a good engineer would write in an afternoon. Needs
torch and numpy alone, runs uninstalled from any folder, ends before its deadline, and keeps every
figure the moment it is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

STARTED = time.monotonic()
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from baseline import afternoon, chains, convolutions, hardware, table, worker  # noqa: E402
from baseline.bench import (  # noqa: E402
    FULL,
    FULL_DEADLINE,
    QUICK,
    Bench,
    Report,
    Section,
    run_sections,
)


def sections(commit: str | None) -> list[Section]:
    """All sections in order, each with the seconds that those before it must leave for it."""
    return [
        Section("environment", partial(hardware.environment, given_commit=commit), 3.0),
        Section("copy", hardware.copies, 15.0),
        Section("matmul", hardware.matmuls, 15.0),
        Section("convolution", convolutions.convolutions, 75.0),
        Section("reference chain", chains.chains, 50.0),
        Section("reference training", chains.trainings, 35.0),
        Section("afternoon", afternoon.eager, 17.0),
        Section("compiled", afternoon.compiled, 105.0),
    ]


NAMES = [section.name for section in sections(None)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument(
        "--out", type=Path, default=HERE.parent / "benchmarks" / "results" / "gpu-baseline.json"
    )
    made.add_argument("--commit", help="recorded as the commit; by default git is asked")
    made.add_argument("--deadline", type=float, default=FULL_DEADLINE, help="seconds for all")
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    made.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --quick")
    made.add_argument(
        "--sections", help=f"comma-separated, in order, of: {', '.join(NAMES)}; default all"
    )
    made.add_argument("--compile-mode", default="max-autotune", help="of torch.compile")
    made.add_argument("--compile-worker", help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if a section failed as a whole; 2 if nothing could be measured."""
    arguments_parser = parser()
    options = arguments_parser.parse_args(arguments)
    if options.compile_worker:
        worker.work(json.loads(options.compile_worker))
        return 0
    chosen = options.sections.split(",") if options.sections else NAMES
    if unknown := [name for name in chosen if name not in NAMES]:
        arguments_parser.error(f"--sections: unknown {unknown}; known: {', '.join(NAMES)}")
    device = torch.device(options.device)
    if device.type == "cpu" and not options.quick:
        arguments_parser.error("--device cpu only goes with --quick")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu_baseline: torch {torch.__version__} finds no CUDA device; run on a machine with "
            "one, or try the script itself with --device cpu --quick",
            file=sys.stderr,
        )
        return 2
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    bench = Bench(
        device,
        Report(options.out),
        QUICK if options.quick else FULL,
        deadline=options.deadline,
        started=STARTED,
        compile_mode=options.compile_mode,
    )
    todo = [section for section in sections(options.commit) if section.name in chosen]
    run_sections(bench, todo, after=hardware.clocks, log=partial(print, flush=True))
    print("\n".join(table.lines(bench.report.data)), flush=True)
    return int(any(s["status"] == "failed" for s in bench.report.data["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
