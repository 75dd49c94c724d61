"""Build, test and benchmark the library on a machine with a CUDA GPU, in under nine minutes.

    python benchmarks/gpu/check.py --out FOLDER --commit HASH
    python benchmarks/gpu/check.py --out FOLDER --dry-run      # on a machine without a GPU

Builds the library in place for this machine's GPU, runs the GPU tests, the kernels' tests under
compute-sanitizer, the rooflines and the benchmarks. Each part runs even if an earlier one failed,
and the results file is rewritten after each. Needs no network and no git, only torch, triton,
numpy, pybind11, cmake, ninja, pytest with its benchmark and timeout plug-ins, and CUDA's tools.
Writes four files into FOLDER: gpu-check.json (status of the parts, clocks, bandwidth), rates.json
(rooflines), benchmarks.jsonl and log.txt.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
ABOUT = "import cdrl_fast; print(cdrl_fast.about())"
# Without the tests that are slow under the sanitizer and access memory like the others, and those
# of graphs: the uncached allocator refuses to allocate in a capture.
FAST_TESTS = "not large_radii and not beyond_32_bits and not graph and not captured"
LARGE = "langevin_step 16384×3×32×32"
BYTES_PER_ELEMENT = 16  # x, gradient and anchor read, x written, in float32
QUERY = (
    "name,driver_version,compute_cap,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu,clocks_throttle_reasons.active"
)

Judge = Callable[[str], str | None]


@dataclass(frozen=True)
class Part:
    """One command of the check.

    Attributes:
        name: the name of the part in results.
        command: the command and its arguments.
        limit: seconds after which it is stopped, or earlier if later parts need the time.
        need: seconds that earlier parts must leave for it.
        judge: a function from the output to the reason why a run with exit status 0 failed, or
            None if it passed.
        environment: additional environment variables.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    need: float
    judge: Judge = lambda output: None
    environment: dict[str, str] = field(default_factory=dict)


def tests_ran(output: str) -> str | None:
    """Return None if a test passed; pytest also exits with 0 if all are skipped."""
    return None if re.search(r"\b\d+ passed", output) else "no test ran"


def sanitized(output: str) -> str | None:
    """Return None if the sanitizer's summary counts no errors and tests ran under it."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    if not summaries:
        return "the sanitizer printed no summary"
    bad = [s for s in summaries if not re.match(r"0 (?:errors|hazards)", s)]
    return f"the sanitizer found: {'; '.join(bad)}" if bad else tests_ran(output)


def sanitizer(tool: str, tests: str, filtered: bool) -> Part:
    """Return the kernels' tests under one of compute-sanitizer's tools.

    ``filtered`` instruments only the library's kernels; initcheck needs all, because torch's
    kernels initialise the arrays.
    """
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "86")
    only = ("--kernel-regex", "kns=cdrl_") if filtered else ()
    run = (*PYTEST, "tests/ops", "-m", "gpu", "-x", "-k", tests)
    # Torch's caching allocator would hide accesses beyond the end of an array.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Part(f"sanitizer {tool}", (*command, *only, *run), 75, 35, sanitized, environment)


def parts(out: Path, commit: str, architecture: str) -> list[Part]:
    """Return all parts in order."""
    # The tools that installed the package, so that only changed files are compiled.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    build = {"CDRL_NATIVE": "ON", "CDRL_CUDA": "ON", "CDRL_CUDA_ARCHS": architecture, "PATH": path}
    rates = (str(HERE / "ceilings.py"), "--out", str(out / "rates.json"))
    results = ("--results", str(out / "benchmarks.jsonl"), "--commit", commit)
    benchmarks = (*PYTEST, "benchmarks/", "--benchmark-only", "--paper", *results)
    return [
        Part("build", (sys.executable, "setup.py", "build_ext", "--inplace"), 150, 60,
             environment=build),
        Part("about", (sys.executable, "-c", ABOUT), 40, 10),
        Part("tests", (*PYTEST, "-m", "gpu"), 180, 90, tests_ran),
        Part("ceilings", (sys.executable, *rates), 70, 30),
        sanitizer("memcheck", FAST_TESTS, True),
        sanitizer("racecheck", FAST_TESTS, True),
        sanitizer("initcheck", "borders or without_recovery or rng_state or odd_views", False),
        Part("benchmarks", (*benchmarks, "--rounds", "9"), 240, 150, tests_ran),
    ]  # fmt: skip


def collected(output: str) -> str | None:
    """Return None if tests were collected without errors."""
    success = re.search(r"\b[1-9]\d*(/\d+)? tests? collected", output)
    return None if success else "no test was collected"


def tuning(out: Path) -> Part:
    """Return a dry run of the tuning of convolutions; on a GPU the tuning is a separate command."""
    script, table = str(HERE / "tune_conv3x3.py"), str(out / "tuned.json")
    return Part("tuning", (sys.executable, script, "--dry-run", "--table", table), 120, 0)


def dry_run(part: Part) -> Part:
    """Return the part without a GPU: tests are collected, and the CPU is timed."""
    command = part.command
    if part.name == "ceilings":
        return replace(part, command=(*command, "--device", "cpu", "--quick"))
    if "pytest" not in command:
        return part
    start = command.index(sys.executable)
    return replace(part, command=(*command[start:], "--collect-only"), judge=collected)


@dataclass
class Check:
    """One run of the check: its results and its deadline."""

    out: Path
    commit: str
    deadline: float
    started: float = STARTED
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.results = {
            "format": 1,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "python": sys.version.split()[0],
            "device": gpu(),
            "parts": {},
        }
        self.save()

    def save(self) -> None:
        """Write the results file."""
        new = self.out / ".gpu-check.json"
        new.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(new, self.out / "gpu-check.json")

    def run(self, chosen: list[Part]) -> None:
        """Run the parts in order, and stop them so that the deadline is met."""
        for i, part in enumerate(chosen):
            left = self.started + self.deadline - time.monotonic()
            seconds = min(part.limit, left - sum(later.need for later in chosen[i + 1 :]))
            begun = time.monotonic()
            if seconds <= 0:
                record = {"status": "skipped", "why": "no time left before the deadline"}
            else:
                record = self._run(part, seconds)
            record |= {"seconds": round(time.monotonic() - begun, 1), "device_after": gpu()}
            self.results["parts"][part.name] = record
            self.save()
            print(f"{part.name:20} {record['status']:8} {record['seconds']:6.1f} s", flush=True)

    def _run(self, part: Part, seconds: float) -> dict[str, Any]:
        why = None
        with (self.out / "log.txt").open("a+") as log:
            print(f"\n===== {part.name}: {' '.join(part.command)}", file=log, flush=True)
            start = log.tell()
            try:
                code: int | None = _within(seconds, part, log)
            except OSError as error:
                code, why = None, str(error)
            except subprocess.TimeoutExpired:
                code, why = None, f"stopped after {seconds:.0f} s"
            log.seek(start)
            output = log.read()
        if code == 0:
            why = part.judge(output)
        elif code is not None:
            why = f"exit status {code}"
        record: dict[str, Any] = {"status": "passed" if why is None else "failed"}
        if why is not None:
            record |= {"why": why, "command": list(part.command), "tail": output[-3000:]}
        return record


def _within(seconds: float, part: Part, log: Any) -> int:
    """Return the exit status of the part's command; stop all processes that it started."""
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **part.environment},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def gpu() -> dict[str, str]:
    """Return name, driver, clocks, power and temperature of the first GPU; {} without one."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(QUERY.split(","), values, strict=False))


def bandwidth(path: Path) -> dict[str, Any]:
    """Return the large update's bytes per second by backend, and its share of a copy's."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text().splitlines()[-1])["rows"]
    rates = {
        row["contender"]: BYTES_PER_ELEMENT * row["elements"] * row["updates"] / row["median"]
        for row in rows
        if row["group"] == LARGE and row["contender"] in ("copy", "cuda", "triton")
    }
    copy = rates.get("copy")
    return {
        name: {"bytes_per_second": rate, "share_of_copy": rate / copy if copy else None}
        for name, rate in rates.items()
    }


def summary(results: dict[str, Any]) -> list[str]:
    """Return lines with the status of each part and the bandwidths."""
    lines = []
    for name, part in results["parts"].items():
        lines.append(f"{name:20} {part['status']}{': ' + part['why'] if 'why' in part else ''}")
    for name, rate in results["bandwidth"].items():
        share = (
            "" if rate["share_of_copy"] is None else f", {rate['share_of_copy']:.1%} of the copy"
        )
        lines.append(f"{LARGE} {name}: {rate['bytes_per_second'] / 1e12:.2f} TB/s{share}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if a part did not pass; 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--commit", default="", help="recorded with the results")
    parser.add_argument("--deadline", type=float, default=525.0, help="seconds for all parts")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="without a GPU: build, and collect the tests",
    )
    parser.add_argument("--parts", help="comma-separated names; by default all")
    options = parser.parse_args(arguments)
    device = {"compute_cap": "9.0"} if options.dry_run else gpu()
    if not device:
        print("check: nvidia-smi finds no GPU; run it on a machine with one", file=sys.stderr)
        return 2
    out = options.out.resolve()
    todo = parts(out, options.commit or "unknown", device["compute_cap"].replace(".", ""))
    if options.dry_run:
        todo = [*(dry_run(part) for part in todo), tuning(out)]
    names = [part.name for part in todo]
    chosen = options.parts.split(",") if options.parts else names
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--parts: unknown {unknown}; known: {', '.join(names)}")
    for old in ("log.txt", "benchmarks.jsonl", "rates.json"):
        (out / old).unlink(missing_ok=True)
    check = Check(out, options.commit, options.deadline)
    check.results["sanitizer"] = shutil.which("compute-sanitizer")
    check.run([part for part in todo if part.name in chosen])
    check.results["bandwidth"] = bandwidth(out / "benchmarks.jsonl")
    rates = out / "rates.json"
    check.results["ceilings"] = json.loads(rates.read_text()) if rates.exists() else None
    check.save()
    print("\n".join(summary(check.results)), flush=True)
    return int(any(part["status"] != "passed" for part in check.results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
