"""Measures which room and which blocks are fastest for the energy network's 3×3 convolutions.

    python scripts/tune_conv3x3.py --seconds 180
    python scripts/tune_conv3x3.py --dry-run    # on a machine without a GPU: tiny, interpreted

For the paper's shapes, both directions, three batches and precisions, each contender (Triton's
kernel in a few sizes of blocks, and cuDNN with its epilogue) is checked against the reference and
then timed between CUDA events: medians, activations in the L2 as far as they fit and weights from
memory, as in a chain. Winners go into the library's table, which is written anew after each
convolution, and a JSON line a contender into a results file. What the time does not suffice for
keeps the winners it had. Needs torch, triton and numpy alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

STARTED = time.monotonic()
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from baseline.revision import commit  # noqa: E402
from baseline.timing import DTYPES, Timing, measure  # noqa: E402
from conv3x3_uses import conv3x3_uses  # noqa: E402
from torch import Tensor  # noqa: E402

from cdrl_fast.ops.conv3x3 import reference, tiling, winners  # noqa: E402
from cdrl_fast.ops.products import products  # noqa: E402
from cdrl_fast.ops.signs import pack  # noqa: E402

# Size, channels in and out. The last is a stage's first block, whose shortcut it is.
SHAPES = ((32, 128, 128), (16, 256, 256), (8, 256, 256), (4, 256, 256), (16, 128, 256))
TINY = ((4, 32, 32), (4, 32, 64))
# The most telling first, since what comes last is what a lack of time drops.
BATCHES, KINDS = (64, 512, 8), ("fp16", "bf16", "tf32")
# Pixels, channels, warps and stages of a program; a step of its sum is of 128 bytes. All compile
# for sm_80, 90 and 100, most in every use without a spill: what spills is left out.
BLOCKS = (
    (128, 256, 8, 3), (64, 256, 8, 3), (128, 128, 8, 4), (64, 128, 4, 4), (128, 64, 4, 4),
    (64, 64, 4, 6), (32, 64, 4, 4),
)  # fmt: skip
STEP_BYTES = 128
MOST_PROGRAMS = 8192
# Relative to the norm of the result: a few roundings of values and of their sum's terms.
ERRORS = {"fp16": 2e-3, "bf16": 1.6e-2, "tf32": 2e-3}
WRONG_SIGNS = 1e-4
"""Words that may differ where a sum rounds to zero."""
MARGIN = 0.98
"""cuDNN is taken below this share of Triton's time: it rounds once more and allocates."""
L2 = "activations warm as far as they fit, weights cold"


@dataclass(frozen=True)
class Problem:
    """One convolution; ``kind`` as in `KINDS`."""

    kind: str
    batch: int
    size: int
    c_in: int
    c_out: int
    transposed: bool

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]

    @property
    def precision(self) -> str:
        """How float32 is multiplied."""
        return "tf32" if self.kind == "tf32" else "ieee"

    @property
    def use(self) -> str:
        """What a plan asks most of; of a shortcut where the channels differ."""
        if self.c_in != self.c_out:
            return "plain, transposed" if self.transposed else "plain"
        return "masked residual" if self.transposed else "residual"

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2

    @property
    def flops(self) -> int:
        return 18 * self.pixels * self.c_in * self.c_out

    def key(self, capability: int) -> winners.Kind:
        name = "tf32" if self.kind == "tf32" else str(self.dtype).removeprefix("torch.")
        return winners.Kind(capability, name, self.transposed, self.c_in, self.c_out)

    def arguments(self, device: str) -> list[Any]:
        """As `conv3x3`'s rooms take them up to the precision; memory as it comes."""
        shape = (self.batch, self.size, self.c_in, self.c_out)
        with torch.device(device):
            given = list(conv3x3_uses(*shape, self.dtype)[self.use])
            if given[4] is not None:
                # Apart from the result, or each call would add to the last one's.
                given[4] = torch.empty_like(given[4])
        return given


@dataclass(frozen=True)
class Contender:
    room: str
    blocks: tiling.Blocks | None = None

    @property
    def name(self) -> str:
        b = self.blocks
        if b is None:
            return self.room
        loads = "TMA" if b.tma else "loads"
        return (
            f"{self.room} {b.block_m}×{b.block_n}×{b.block_k}, {b.warps} warps, {b.stages} stages, "
            f"{loads}"
        )

    def run(self, capability: int, given: list[Any], precision: str) -> None:
        from cdrl_fast.ops.conv3x3 import cudnn, triton

        if self.room == "cudnn":
            cudnn.conv3x3(*given, precision)
        else:
            triton.conv3x3(capability, *given, precision, self.blocks)


def problems(tiny: bool) -> Iterator[Problem]:
    batches, kinds, shapes = ((8,), ("fp16", "tf32"), TINY) if tiny else (BATCHES, KINDS, SHAPES)
    for batch in batches:
        for kind in kinds:
            for size, c_in, c_out in shapes:
                yield Problem(kind, batch, size, c_in, c_out, False)
                yield Problem(kind, batch, size, c_out, c_in, True)


def contenders(problem: Problem, capability: int) -> list[Contender]:
    """cuDNN, what `tiling` takes by itself, and whatever of `BLOCKS` suits the problem."""
    shape = (problem.batch, problem.size, problem.size, problem.c_in)
    half = problem.dtype != torch.float32
    options = {"half": half, "exact": False, "capability": capability, "aligned": True}
    found = [tiling.tiling(shape, problem.c_out, **options)]
    step = min(STEP_BYTES // (2 if half else 4), problem.c_in & -problem.c_in)
    for m, n, warps, stages in BLOCKS:
        if problem.c_out % n:
            continue
        wanted = tiling.Blocks(m, n, step, capability >= 90, warps, stages)
        made = tiling.tiling(shape, problem.c_out, **options, blocks=wanted)
        few = made.programs(*shape[:3], problem.c_out) <= MOST_PROGRAMS
        if few and made not in found:
            found.append(made)
    return [Contender("cudnn"), *(Contender("triton", tile.blocks) for tile in found)]


def spilled(problem: Problem, blocks: tiling.Blocks, capability: int) -> int:
    """Bytes that the kernel spills; compiled here, it is in Triton's cache for all processes."""
    import compile_kernels

    from cdrl_fast.ops.conv3x3 import triton

    compile_kernels.triton.runtime.driver.set_active(compile_kernels.Target(capability))
    given = problem.arguments("cpu")
    launch = triton.arguments(capability, *given, problem.precision, blocks)
    made = compile_kernels.compiled("", launch, capability)
    return made.stack + made.local


class Case:
    """A problem's arrays on a device, and what should come of them."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem, self.device = problem, device
        generator = torch.Generator(device).manual_seed(0)
        self.given = problem.arguments(str(device))
        weight: Tensor = self.given[2]
        for tensor in (t for t in self.given if isinstance(t, Tensor)):
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
            else:
                tensor.random_(-(2**31), 2**31, generator=generator)
        weight.mul_((9 * problem.c_in) ** -0.5)
        with products("ieee"):
            reference.conv3x3(*self.given)
        self.expected = self.given[0].clone()
        # One set is enough where a call reads far more than the weights.
        count = 2
        if device.type == "cuda":
            l2 = torch.cuda.get_device_properties(device).L2_cache_size
            count = 1 if problem.pixels > 2**16 else min(256, math.ceil(1.5 * l2 / weight.nbytes))
        self.sets = [[*self.given[:2], weight.clone(), *self.given[3:]] for _ in range(count)]

    def check(self, contender: Contender, capability: int) -> float:
        """Relative error of a contender's result; raises where it or a sign is wrong."""
        out, signs_out = self.given[0], self.given[6]
        out.fill_(math.nan)
        if signs_out is not None:
            signs_out.zero_()
        contender.run(capability, self.given, self.problem.precision)
        error = float((out - self.expected).float().norm() / self.expected.float().norm())
        if not error < ERRORS[self.problem.kind]:
            raise AssertionError(f"relative error {error:.2e}")
        if signs_out is not None:
            wrong = float((pack(out > 0) != signs_out).float().mean())
            if not wrong < WRONG_SIGNS:
                raise AssertionError(f"{wrong:.2e} of all words have wrong signs")
        return error

    def time(self, contender: Contender, capability: int, dry: bool) -> Timing:
        sets, precision = self.sets, self.problem.precision
        return measure(
            lambda i: contender.run(capability, sets[i % len(sets)], precision),
            self.device,
            seconds=0.0 if dry else 0.01,
            at_least=1 if dry else 5,
            rounds=len(sets),
        )


class Tuning:
    """One run: contenders compiled by processes beside it, and what has been measured."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.capability = tiling.capability_of(device)
        self.compiled: dict[tuple[Problem, Contender], Future[int]] = {}
        self.longest = 1.0
        self.about = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "torch": torch.__version__,
            "triton": __import__("triton").__version__,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(options.commit),
        }

    def left(self) -> float:
        return STARTED + self.options.seconds - time.monotonic()

    def run(self, todo: list[Problem], pool: ProcessPoolExecutor, lines: TextIO) -> int:
        """Returns how many contenders failed."""
        for problem in todo:
            for contender in contenders(problem, self.capability):
                key = self._kernel(problem, contender)
                if key not in self.compiled and contender.blocks is not None:
                    arguments = (key[0], contender.blocks, self.capability)
                    self.compiled[key] = pool.submit(spilled, *arguments)
        failed = 0
        for done, problem in enumerate(todo):
            begun = time.monotonic()
            rows: list[dict[str, Any]] = []
            with suppress(TimeoutError):
                rows = self._measure(problem)
            if not rows:
                print(f"{len(todo) - done} of {len(todo)} convolutions are left: no time")
                break
            self.longest = max(self.longest, time.monotonic() - begun)
            failed += sum("failed" in row for row in rows)
            lines.writelines(json.dumps({**asdict(problem), **row}) + "\n" for row in rows)
            lines.flush()
        return failed

    def _kernel(self, problem: Problem, contender: Contender) -> tuple[Problem, Contender]:
        """What decides on the machine code: the batch does not."""
        return replace(problem, batch=BATCHES[0]), contender

    def _measure(self, problem: Problem) -> list[dict[str, Any]]:
        """A row a contender; the winner goes into the table. TimeoutError: too little time."""
        if self.left() < self.longest:
            raise TimeoutError
        case, rows, times = Case(problem, self.device), [], {}
        for contender in contenders(problem, self.capability):
            row: dict[str, Any] = {"contender": contender.name, **asdict(contender)}
            try:
                row |= self._one(case, contender)
            except TimeoutError:
                raise
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {str(error)[:600]}"
            if "seconds" in row:
                times[contender] = row["seconds"]
            rows.append(row)
        best = min(times.values(), default=math.nan)
        for row in rows:
            if "seconds" in row:
                row["share_of_best"] = best / row["seconds"]
        self._enter(problem, times)
        return rows

    def _one(self, case: Case, contender: Contender) -> dict[str, Any]:
        """The contender's figures, or why it is left out."""
        from triton.runtime.errors import OutOfResources

        kernel = self.compiled.get(self._kernel(case.problem, contender))
        if kernel is not None and (spills := kernel.result(max(0.0, self.left()))):
            return {"left_out": f"{spills} bytes spilled"}
        try:
            error = case.check(contender, self.capability)
        except OutOfResources as too_much:
            return {"left_out": str(too_much)}
        timing = case.time(contender, self.capability, self.options.dry_run)
        tflops = case.problem.flops / timing.seconds / 1e12
        return timing.figure(tflops=tflops, relative_error=error, l2=L2)

    def _enter(self, problem: Problem, times: dict[Contender, float]) -> None:
        """The winner to the table, on disk at once."""
        ours = {c: t for c, t in times.items() if c.blocks is not None}
        name = f"{problem.kind} {problem.batch}×{problem.size}×{problem.size} " + (
            f"{problem.c_in}→{problem.c_out} {problem.use}"
        )
        if not ours:
            print(f"{name}: nothing of Triton's ran", flush=True)
            return
        first = min(ours, key=ours.__getitem__)
        library = times.get(Contender("cudnn"), math.inf)
        room = "cudnn" if library < MARGIN * ours[first] else "triton"
        assert first.blocks is not None
        entry = {winners.exponent(problem.pixels): winners.Winner(room, first.blocks)}
        new = winners.Table(
            {problem.key(self.capability): entry}, {str(self.capability): self.about}
        )
        path: Path = self.options.table
        old = winners.Table.read(path) if path.exists() else winners.Table({}, {})
        old.merged(new).write(path)
        times_of = f"{first.name} {ours[first] * 1e6:.1f} µs, cudnn {library * 1e6:.1f} µs"
        print(f"{name}: {room}; {times_of}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, help="of results; by default benchmarks/results")
    made.add_argument("--table", type=Path, help="by default the library's own")
    made.add_argument("--seconds", type=float, default=180.0, help="for all of it")
    made.add_argument("--commit", help="recorded as the commit; by default git is asked")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="tiny sizes on the CPU, by Triton's interpreter; the table goes beside --out",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 where a contender failed; 2 where there is no GPU."""
    options = parser().parse_args(arguments)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        options.out = options.out or HERE.parent / "build" / "conv3x3-tuning.jsonl"
        options.table = options.table or options.out.with_suffix(".table.json")
        if options.table.resolve() == winners.COMMITTED:
            parser().error("--dry-run measures nothing that the library's table could hold")
    elif not torch.cuda.is_available():
        print(
            f"tune_conv3x3: torch {torch.__version__} finds no CUDA device; run it on a machine "
            "with one, or try the script itself with --dry-run",
            file=sys.stderr,
        )
        return 2
    options.table = options.table or winners.COMMITTED
    options.out = options.out or HERE.parent / "benchmarks" / "results" / "conv3x3-tuning.jsonl"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu") if options.dry_run else torch.device("cuda", 0)
    tuning = Tuning(options, device)
    spawn = multiprocessing.get_context("spawn")
    processes = min(os.cpu_count() or 1, 1 if options.dry_run else 16)
    with ProcessPoolExecutor(processes, spawn) as pool, options.out.open("a") as lines:
        lines.write(json.dumps({"run": tuning.about, "dry_run": options.dry_run}) + "\n")
        failed = tuning.run(list(problems(options.dry_run)), pool, lines)
        pool.shutdown(wait=False, cancel_futures=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
