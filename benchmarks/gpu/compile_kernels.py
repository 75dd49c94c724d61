"""Compile every GPU kernel to machine code, without a GPU, and check the machine code.

    python benchmarks/gpu/compile_kernels.py --archs 80,90,100

For each Triton kernel, with the arguments the library would launch it with, and for each kernel of
csrc/cuda where nvcc is found: registers, stack and spilled bytes, shared memory, what moves and
multiplies tiles, and the widths of its loads and stores. Fails where a kernel uses stack or spills,
where whole, aligned arrays are not moved 16 bytes at a time, or where half-precision products are
not the tensor cores' newest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice, product, repeat
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402
from conv3x3_shapes import conv3x3_uses  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from cdrl_fast.ops.conv3x3 import cudnn  # noqa: E402
from cdrl_fast.ops.conv3x3 import triton_kernel as conv3x3  # noqa: E402
from cdrl_fast.ops.head import triton_kernel as head  # noqa: E402
from cdrl_fast.ops.langevin_step import triton_kernel as langevin_step  # noqa: E402
from cdrl_fast.ops.mlp_chain import Activation, Linear, Program  # noqa: E402
from cdrl_fast.ops.mlp_chain import triton_kernel as mlp_chain  # noqa: E402
from cdrl_fast.ops.mlp_chain.triton_weights import PackedWeights  # noqa: E402
from cdrl_fast.ops.norm_silu import triton_kernel as norm_silu  # noqa: E402
from cdrl_fast.ops.normal import triton_kernel as normal  # noqa: E402
from cdrl_fast.ops.pool import triton_kernel as pool  # noqa: E402
from cdrl_fast.ops.stem import triton_kernel as stem  # noqa: E402
from cdrl_fast.ops.stem_gradient import triton_kernel as stem_gradient  # noqa: E402
from cdrl_fast.ops.triton_common import Launch  # noqa: E402

PARTS = 2
"""Processes that share an architecture's kernels."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = "wide"
HALF = "half"
# By major capability, the instruction that multiplies half-precision tiles.
PRODUCTS = {8: "HMMA", 9: "HGMMA", 10: "UTCHMMA"}
# Batch, size, channels in and out; the third is the second's gradient. The last two are a few
# pixels, and boxes that leave much empty.
CONVOLUTIONS = (
    (64, 32, 128, 128), (64, 16, 128, 256), (64, 16, 256, 128), (64, 8, 256, 256),
    (64, 4, 256, 256), (1, 8, 256, 256), (33, 7, 32, 64),
)  # fmt: skip
TYPES = (
    (torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"),
    (torch.float32, "tf32"),
)  # fmt: skip
UNITS = ("FFMA", *PRODUCTS.values(), "LDGSTS", "UTMALDG")


@dataclass(frozen=True)
class Result:
    """A compiled kernel; ``wide`` and ``narrow`` count global loads and stores by width.

    ``tiles`` are the instructions that multiply tiles or bring them to shared memory.
    """

    name: str
    arch: int
    registers: int
    stack: int
    local: int
    shared: int
    wide: int
    narrow: int
    tiles: tuple[str, ...]

    def faults(self) -> list[str]:
        found = []
        if self.stack or self.local:
            found.append(f"{self.stack} bytes of stack, {self.local} of local memory")
        if WIDE in self.name and not self.wide:
            found.append("no 16-byte loads and stores")
        if HALF in self.name and PRODUCTS[self.arch // 10] not in self.tiles:
            found.append(f"no {PRODUCTS[self.arch // 10]}")
        return found


class Target:
    """A stand-in for Triton's driver, with a device of some architecture that runs nothing."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are cached by device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield the library's launches, as on that architecture.

    A name with "wide" has whole samples on 16-byte boundaries, one with "half" multiplies in half
    precision.
    """
    yield from convolutions(arch)
    shapes = {WIDE: (16, 3072), "wide small": (16, 8), "odd": (16, 4097), "odd small": (16, 2)}
    for name, shape in shapes.items():
        yield f"normal {name}", normal.arguments(torch.empty(shape), 1, 2, 3)
        x = torch.empty(shape)
        for grad in (torch.float32, torch.bfloat16, torch.float16)[: 3 if name == WIDE else 1]:
            slope = torch.empty(shape, dtype=grad)
            short = str(grad).removeprefix("torch.")
            words = torch.zeros(4, dtype=torch.int64)
            table = torch.empty(4, shape[0])
            # All that can be asked for at once, and the least.
            full = (x, x, slope, x, table, (0.0,) * 4, (0, 0, 0), words, words[:1])
            yield f"langevin_step {name} {short} full", langevin_step.arguments(*full)
            bare = (x, x, slope, None, None, (0.1,) * 4, (1, 2, 3), None, None)
            yield f"langevin_step {name} {short} bare", langevin_step.arguments(*bare)
    yield from chains()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield from plan_launches(dtype)
        yield from norms(dtype)


def plan_launches(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield the launches of an energy network besides convolutions, the paper's shapes first."""

    def activations(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def words(channels: int, pixels: int) -> torch.Tensor:
        return torch.empty(channels // 32, pixels, dtype=torch.int32)

    short = str(dtype).removeprefix("torch.")
    batch, state = 16, torch.zeros(4, dtype=torch.int64)
    half = dtype == torch.float16
    for image, side, width in ((3, 32, 128), (4, 7, 96))[: 2 if half else 1]:
        name = f"{image}×{side}×{side} to {width} {WIDE} {short}"
        y = torch.empty(batch, image, side, side)
        weight, bias = activations(9, image, width), torch.empty(width)
        # Of one condition, and of a linear combination of two.
        for terms in (1, 2):
            many, of = activations(terms * batch, side, side, width), f"{name} ×{terms}"
            signs = words(width, terms * batch * side * side)
            yield f"stem {of}", stem.arguments(y, weight, bias, terms, many, signs)
            launch = stem_gradient.gradient_arguments(many, weight, terms, 8.0, y)
            yield f"stem_gradient {of}", launch
        one, each = torch.zeros(1), torch.zeros(batch)
        full = (y, (one, one, one, each), state, state[:1])
        graph = (y, (one, one, one, 1.0), state, state[:1])
        for kind, terms, rest in (("full", 1, full), ("graph", 1, graph), ("graph", 2, graph)):
            many = activations(terms * batch, side, side, width)
            launch = stem_gradient.langevin_arguments(y, many, weight, terms, *rest)
            yield f"stem_langevin {name} ×{terms} {kind}", launch
    for side, width in ((16, 256), (14, 32))[: 2 if half else 1]:
        name = f"{side}×{side}×{width} {WIDE} {short}"
        small, large = (activations(batch, s, s, width) for s in (side, 2 * side))
        signs = words(width, batch * side * side)
        yield f"pool {name} full", pool.pool_arguments(large, small, signs, small)
        yield f"pool {name} bare", pool.pool_arguments(large, small, None, None)
        yield f"spread {name}", pool.spread_arguments(small, large)
    for side, width in ((4, 256), (7, 96))[: 2 if half else 1]:
        name = f"{side}×{side}×{width} {WIDE} {short}"
        a, rows, out = (
            activations(batch, side, side, width),
            torch.empty(1, width),
            torch.empty(batch),
        )
        yield f"head {name} full", head.arguments(a, rows.expand(batch, -1), 8.0, out, a)
        yield f"head {name} bare", head.arguments(a, rows, 1.0, out, None)


def norms(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield an initializer's norms: wide maps, few pixels, groups of three and nine channels."""
    short = str(dtype).removeprefix("torch.")
    shapes = ((32, 128, WIDE), (8, 64, WIDE), (28, 96, WIDE), (5, 18, "odd"))
    for side, channels, kind in shapes[: 4 if dtype == torch.float16 else 1]:
        name = f"norm_silu {side}×{side}×{channels} {kind} {short}"
        x, each = torch.empty(16, side, side, channels, dtype=dtype), torch.empty(channels)
        row = torch.empty(1, 2 * channels)
        yield f"{name} full", norm_silu.arguments(x, each, each, each, row, True, x)
        yield f"{name} bare", norm_silu.arguments(x, each, each, None, None, False, x)


def convolutions(arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield every use and type at the paper's first stage; the largest at other shapes."""
    for batch, size, c_in, c_out in CONVOLUTIONS:
        first = size == CONVOLUTIONS[0][1]
        for dtype, precision in TYPES if first else (TYPES[0], TYPES[2]):
            short = precision if precision == "tf32" else str(dtype).removeprefix("torch.")
            label = f"{WIDE} {short}{'' if dtype == torch.float32 else f' {HALF}'}"
            uses = conv3x3_uses(batch, size, c_in, c_out, dtype)
            heavy = {"residual", "masked residual", "plain, transposed"}
            for use in uses if first else sorted(heavy.intersection(uses)):
                launch = conv3x3.arguments(arch, *uses[use], precision)
                yield f"conv3x3 {label} {batch}×{size}×{size} {c_in}→{c_out} {use}", launch
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield from epilogues(dtype)


def epilogues(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield what follows cuDNN's convolution in every use; some with a tile cut short."""
    short = str(dtype).removeprefix("torch.")
    for batch, size, channels in ((64, 32, 128), (33, 7, 96))[: 2 if dtype == torch.float16 else 1]:
        for use, given in conv3x3_uses(batch, size, channels, channels, dtype).items():
            out, _, _, row, residual, signs, signs_out, _, *flags = given
            launch = cudnn.arguments(out, out, row, residual, signs, signs_out, *flags)
            name = f"{WIDE} {short} {batch}×{size}×{size}×{channels}"
            yield f"conv3x3_epilogue {name} {use}", launch


def chains() -> Iterator[tuple[str, Launch]]:
    """Yield the launches of `mlp_chain`, whose kernel is the same for every program."""
    weight, bias = torch.empty(128, 2), slice(0, 128)
    program = Program((2, 128), (Linear(0, 1, weight, bias),), torch.empty(128), Activation("silu"))
    y, rows, table = torch.empty(100, 2), torch.empty(100, 128), torch.empty(4, 100)
    words = torch.zeros(4, dtype=torch.int64)
    for precision in ("fp32", "bf16", "fp16"):
        packed = PackedWeights(program, precision, value=False)
        full = (y, rows, 9, table, (0.0,) * 4, (0, 0, 0), words, words[:1])
        bare = (None, None, 9, None, (0.1,) * 4, (1, 2, 3), None, None)
        name = f"mlp_chain {WIDE} {precision}"
        yield f"{name} full", mlp_chain.arguments(packed, y, *full)
        yield f"{name} bare", mlp_chain.arguments(packed, y, *bare)
        packed, value = PackedWeights(program, precision, value=True), torch.empty(100)
        asked = (*bare, value, y)
        yield f"{name} gradient", mlp_chain.arguments(packed, y, *asked)


def triton_kernels(arch: int, part: int) -> Iterator[Result]:
    triton.runtime.driver.set_active(Target(arch))
    for name, launch in islice(launches(arch), part, None, PARTS):
        yield compiled(f"triton {name}", launch, arch)


def compiled(name: str, launch: Launch, arch: int) -> Result:
    """Return a launch's kernel, compiled for the architecture that is Triton's target."""
    made = launch.kernel.warmup(**launch.values, **launch.options, grid=(launch.programs,))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        (result,) = read(Path(file.name), arch)
    # The launch decides on the shared memory, so the machine code does not know.
    return replace(Result(name, *result), shared=made.metadata.shared)


def cuda_kernels(arch: int, nvcc: str, part: int) -> Iterator[Result]:
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))[part::PARTS]:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin"]
            subprocess.run(
                [*command, "-I", str(ROOT / "csrc"), "-o", str(cubin), str(source)], check=True
            )
            for i, result in enumerate(read(cubin, arch)):
                name = f"cuda {source.stem} {i}"
                yield Result(f"{name} {WIDE}" if result[5] else name, *result)


def read(
    cubin: Path, arch: int
) -> Iterator[tuple[int, int, int, int, int, int, int, tuple[str, ...]]]:
    """Yield the fields of each function's `Result` but the name."""
    usage = _tool("--dump-resource-usage", str(cubin))
    code = {
        name: body
        for name, body in re.findall(r"Function : (\S+)\n(.*?)(?=\n\s+Function :|\Z)",
                                     _tool("-sass", str(cubin)), re.DOTALL)
    }  # fmt: skip
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found, usage
    for name, registers, stack, shared, local in sorted(found):
        accesses = re.findall(r"\b(?:LDG|LDGSTS|STG)\.E[.\w]*", code[name])
        wide = sum(".128" in access for access in accesses)
        tiles = tuple(unit for unit in UNITS if re.search(rf"\b{unit}\b", code[name]))
        numbers = (int(n) for n in (registers, stack, local, shared))
        yield arch, *numbers, wide, len(accesses) - wide, tiles


def _tool(*arguments: str) -> str:
    command = [str(TOOLS / "cuobjdump"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(task: tuple[int, int], nvcc: str | None) -> list[Result]:
    """Return a part of an architecture's kernels."""
    arch, part = task
    return [*triton_kernels(arch, part), *(cuda_kernels(arch, nvcc, part) if nvcc else ())]


def main() -> int:
    """Return 1 where a kernel is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80,90,100")
    options = parser.parse_args()
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which(
        "/usr/local/cuda/bin/nvcc"
    )
    print(f"triton {triton.__version__}; nvcc: {nvcc or 'not found, CUDA C++ is left out'}")
    print(
        f"{'registers':>9} {'stack':>5} {'local':>5} {'shared':>6} {'16 B':>4} {'less':>4}  tiles"
    )
    bad = 0
    archs = [int(name) for name in options.archs.split(",")]
    tasks = list(product(archs, range(PARTS)))
    # A process each: triton keeps one target, and compiling is on one core.
    workers, spawn = min(len(tasks), os.cpu_count() or 1), get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, max_tasks_per_child=1) as pool:
        made = list(pool.map(kernels, tasks, repeat(nvcc)))
    for r in sorted(chain.from_iterable(made), key=lambda r: (r.arch, r.name)):
        faults = r.faults()
        bad += bool(faults)
        print(
            f"{r.registers:9} {r.stack:5} {r.local:5} {r.shared:6} {r.wide:4} {r.narrow:4}"
            f"  {','.join(r.tiles):19} sm_{r.arch} {r.name}"
            f"{''.join(f'  <- {fault}' for fault in faults)}"
        )
    print(f"{bad} kernels are not as they should be" if bad else "all as they should be")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
