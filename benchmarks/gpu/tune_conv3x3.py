"""Time the 3×3 convolutions of the paper's network and write the fastest into the library's table.

    python benchmarks/gpu/tune_conv3x3.py --seconds 180
    python benchmarks/gpu/tune_conv3x3.py --dry-run --table FILE    # no GPU: tiny, interpreted

The Triton kernel with several block sizes, and cuDNN with its epilogue, are checked against the
reference and then timed in a CUDA graph, as chains run them. The table is rewritten after each
convolution; convolutions that are left when the time is over keep their entries. Needs torch,
triton and numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from conv3x3_shapes import conv3x3_uses  # noqa: E402
from revision import commit  # noqa: E402

from cdrl_fast import about  # noqa: E402
from cdrl_fast.ops.conv3x3 import reference, tuned  # noqa: E402
from cdrl_fast.ops.conv3x3.tiling import Blocks, capability_of, tiling  # noqa: E402
from cdrl_fast.ops.fp32_precision import fp32_precision  # noqa: E402
from cdrl_fast.ops.sign_bits import pack  # noqa: E402

# Batches, precisions, and (size, channels in, channels out); the last shape is that of a shortcut.
# The last batch matters least, because the time may be over before it.
PAPER = (
    (64, 512, 8), ("float16", "bfloat16", "tf32"),
    ((32, 128, 128), (16, 256, 256), (8, 256, 256), (4, 256, 256), (16, 128, 256)),
)  # fmt: skip
TINY = ((8,), ("float16", "tf32"), ((4, 32, 32), (4, 32, 64)))
# Pixels, channels, warps and stages per program; each step of its sum loads 128 bytes.
BLOCKS = (
    (128, 256, 8, 3), (64, 256, 8, 3), (128, 128, 8, 4), (64, 128, 4, 4), (128, 64, 4, 4),
    (64, 64, 4, 6), (32, 64, 4, 4),
)  # fmt: skip
MAX_PROGRAMS = 8192
MARGIN = 0.98
"""cuDNN must take less than this share of Triton's time, because it rounds and allocates more."""


@dataclass(frozen=True)
class Problem:
    """One convolution; its fields are those of the table's entries."""

    precision: str
    batch: int
    size: int
    c_in: int
    c_out: int
    transposed: bool

    def arguments(self, device: torch.device | str) -> list[Any]:
        """Return the arguments of a backend's `conv3x3` up to the blocks, uninitialised."""
        use, shortcut = (
            "masked residual" if self.transposed else "residual",
            self.c_in != self.c_out,
        )
        if shortcut:
            use = "plain, transposed" if self.transposed else "plain"
        tf32 = self.precision == "tf32"
        dtype = torch.float32 if tf32 else getattr(torch, self.precision)
        with torch.device(device):
            uses = conv3x3_uses(self.batch, self.size, self.c_in, self.c_out, dtype)
        return [*uses[use], "tf32" if tf32 else "ieee"]

    def blocks(self, capability: int) -> list[Blocks]:
        """Return the default blocks of `tiling`, and the `BLOCKS` that fit."""
        shape, half = (self.batch, self.size, self.size, self.c_in), self.precision != "tf32"
        options = {"half": half, "exact": False, "capability": capability, "aligned": True}
        step = min(64 if half else 32, self.c_in & -self.c_in)
        candidates = [
            Blocks(m, n, step, capability >= 90, warps, stages)
            for m, n, warps, stages in BLOCKS
            if self.c_out % n == 0
        ]
        tiles = [tiling(shape, self.c_out, **options, blocks=b) for b in (None, *candidates)]
        tiles = [t for t in tiles if t.programs(*shape[:3], self.c_out) <= MAX_PROGRAMS]
        return list(dict.fromkeys(tile.blocks for tile in tiles))


def precompile(problem: Problem, blocks: Blocks, capability: int) -> None:
    """Compile the kernel into Triton's cache; errors are ignored, since running repeats them."""
    import compile_kernels

    compile_kernels.triton.runtime.driver.set_active(compile_kernels.Target(capability))
    with contextlib.suppress(Exception):
        arguments = (*problem.arguments("cpu"), blocks)
        launch = compile_kernels.conv3x3.arguments(capability, *arguments)
        compile_kernels.compiled("", launch, capability)


def check(arguments: list[Any], expected: torch.Tensor) -> None:
    """Raise AssertionError if the output or its signs are wrong."""
    out, signs = arguments[0], arguments[6]
    error = float((out - expected).float().norm() / expected.float().norm())
    assert error < (1.6e-2 if out.dtype == torch.bfloat16 else 2e-3), f"error {error:.1e}"
    if signs is not None:  # signs may differ if a sum rounds to zero
        assert float((pack(out > 0) != signs).float().mean()) < 1e-4, "wrong signs"


def time_candidates(
    problem: Problem, capability: int, device: torch.device
) -> tuple[dict[Blocks | None, float], int]:
    """Return the seconds of each candidate (None: cuDNN), and the number that failed.

    On CPUs candidates are only checked, and the seconds are 1.
    """
    from triton.testing import do_bench_cudagraph

    from cdrl_fast.ops.conv3x3 import cudnn, triton_kernel

    arguments, generator = problem.arguments(device), torch.Generator(device).manual_seed(0)
    for tensor in (t for t in arguments if isinstance(t, torch.Tensor)):
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
        else:
            tensor.random_(-(2**31), 2**31, generator=generator)
    arguments[2].mul_((9 * problem.c_in) ** -0.5)
    with fp32_precision("ieee"):
        reference.conv3x3(*arguments[:-1])
    expected = arguments[0].clone()
    times, failed = {}, 0
    for blocks in (None, *problem.blocks(capability)):
        run = partial(cudnn.conv3x3, *arguments)
        if blocks is not None:
            run = partial(triton_kernel.conv3x3, capability, *arguments, blocks)
        arguments[0].fill_(math.nan)
        try:
            run()
            check(arguments, expected)
            milliseconds = 1e3
            if device.type == "cuda":
                milliseconds = do_bench_cudagraph(run, rep=2, return_mode="median")
            times[blocks] = milliseconds / 1e3
        except Exception as error:  # the other candidates still run
            failed += type(error).__name__ != "OutOfResources"
            print(f"{problem}: {blocks}: {type(error).__name__}: {str(error)[:300]}")
    return times, failed


def write(path: Path, problem: Problem, capability: int, times: dict[Any, float]) -> None:
    """Write the fastest candidate into the table, one line per entry."""
    best = min((b for b in times if b is not None), key=times.__getitem__, default=None)
    if best is None:
        return
    library, ours = times.get(None), times[best]
    faster = library is not None and library < MARGIN * ours
    entry = {name: getattr(problem, name) for name in tuned.SHAPE[1:]}
    entry |= {"capability": capability, "pixels": problem.batch * problem.size**2}
    entry |= {"backend": "cudnn" if faster else "triton", "blocks": asdict(best)}
    entry |= {"seconds": {"triton": ours, "cudnn": library}}
    table = json.loads(path.read_text())
    rows = [*table["convolutions"], entry]
    rows = {tuple(row[name] for name in (*tuned.SHAPE, "pixels")): row for row in rows}
    lines = ",\n".join(f"  {json.dumps(rows[key])}" for key in sorted(rows))
    measured = json.dumps(table["measured"])
    path.write_text(f'{{\n "measured": {measured},\n "convolutions": [\n{lines}\n ]\n}}\n')
    print(json.dumps(entry), flush=True)


def tune(options: argparse.Namespace, device: torch.device) -> int:
    """Tune all convolutions; return the number of candidates that failed."""
    capability, failures, longest = capability_of(device), 0, 1.0
    table = json.loads(tuned.TABLE.read_text())
    table["measured"][str(capability)] = {
        "device": "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "versions": about().versions,
        "cudnn": torch.backends.cudnn.version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(options.commit),
    }
    options.table.write_text(json.dumps(table) + "\n")
    batches, precisions, shapes = TINY if options.dry_run else PAPER
    todo = [
        Problem(precision, batch, size, *((b, a) if back else (a, b)), back)
        for batch in batches
        for precision, (size, a, b), back in product(precisions, shapes, (False, True))
    ]
    # The machine code does not depend on the batch, so each kernel is compiled once.
    kernels = {(replace(p, batch=64), b, capability) for p in todo for b in p.blocks(capability)}
    workers = 1 if options.dry_run else min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(precompile, *zip(*kernels, strict=True)))
    for number, problem in enumerate(todo):
        begin = time.monotonic()
        if STARTED + options.seconds - begin < longest:
            print(f"no time for {len(todo) - number} of {len(todo)} convolutions")
            break
        times, failed = time_candidates(problem, capability, device)
        write(options.table, problem, capability, times)
        failures += failed
        longest = max(longest, time.monotonic() - begin)
    return failures


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if a candidate failed; 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=tuned.TABLE)
    parser.add_argument("--seconds", type=float, default=180.0, help="time limit")
    parser.add_argument("--commit", help="recorded as the commit; by default git's")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, interpreted")
    options = parser.parse_args(arguments)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        if options.table.resolve() == tuned.TABLE:
            parser.error("--dry-run must not overwrite the library's table; pass another --table")
    elif not torch.cuda.is_available():
        print("tune_conv3x3: torch finds no CUDA device; use --dry-run", file=sys.stderr)
        return 2
    device = torch.device("cpu") if options.dry_run else torch.device("cuda", 0)
    return int(tune(options, device) > 0)


if __name__ == "__main__":
    sys.exit(main())
