"""Compile every GPU kernel to machine code without a GPU, and inspect the machine code.

    python benchmarks/gpu/compile_kernels.py --archs 80,90,100

Compiles each Triton kernel, with the arguments of the library's launches, and each kernel of
csrc/cuda if there is nvcc. Prints registers, stack and spilled bytes, shared memory, the tile
instructions, and the widths of loads and stores. Fails if a kernel uses stack or spills, if aligned
arrays are not moved 16 bytes at a time, or if half-precision tiles are not multiplied by the
architecture's newest tensor-core instruction.
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
"""The number of processes that compile the kernels of one architecture."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = "wide"
HALF = "half"
# By major capability, the instruction that multiplies half-precision tiles.
TILE_PRODUCTS = {8: "HMMA", 9: "HGMMA", 10: "UTCHMMA"}
# Batch, size, channels in and out; the third is the gradient of the second. The last two have few
# pixels, and tiles that are mostly empty.
CONVOLUTIONS = (
    (64, 32, 128, 128), (64, 16, 128, 256), (64, 16, 256, 128), (64, 8, 256, 256),
    (64, 4, 256, 256), (1, 8, 256, 256), (33, 7, 32, 64),
)  # fmt: skip
TYPES = (
    (torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"),
    (torch.float32, "tf32"),
)  # fmt: skip
TILE_INSTRUCTIONS = ("FFMA", *TILE_PRODUCTS.values(), "LDGSTS", "UTMALDG")


@dataclass(frozen=True)
class Result:
    """The machine code of a kernel in numbers.

    ``wide`` and ``narrow`` count global loads and stores of 16 bytes and of fewer. ``tiles`` are
    the instructions that multiply tiles or load them into shared memory.
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
        """Return what is wrong with the kernel."""
        faults = []
        if self.stack or self.local:
            faults.append(f"{self.stack} bytes of stack, {self.local} of local memory")
        if WIDE in self.name and not self.wide:
            faults.append("no 16-byte loads and stores")
        if HALF in self.name and TILE_PRODUCTS[self.arch // 10] not in self.tiles:
            faults.append(f"no {TILE_PRODUCTS[self.arch // 10]}")
        return faults


class Target:
    """A stand-in for Triton's driver, with a current device of an architecture to compile for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton caches kernels by device, so each architecture is one

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield names and launches as the library does them on an architecture.

    Names contain "wide" if samples are multiples of 16 bytes, and "half" if tiles are multiplied
    in half precision.
    """
    yield from convolutions(arch)
    shapes = {WIDE: (16, 3072), "wide small": (16, 8), "odd": (16, 4097), "odd small": (16, 2)}
    for name, shape in shapes.items():
        yield f"normal {name}", normal.arguments(torch.empty(shape), 1, 2, 3)
        x = torch.empty(shape)
        for grad in (torch.float32, torch.bfloat16, torch.float16)[: 3 if name == WIDE else 1]:
            slope = torch.empty(shape, dtype=grad)
            short = str(grad).removeprefix("torch.")
            rng = torch.zeros(4, dtype=torch.int64)
            table = torch.empty(4, shape[0])
            # With all optional arguments, and without any.
            full = (x, x, slope, x, table, (0.0,) * 4, (0, 0, 0), rng, rng[:1])
            yield f"langevin_step {name} {short} full", langevin_step.arguments(*full)
            bare = (x, x, slope, None, None, (0.1,) * 4, (1, 2, 3), None, None)
            yield f"langevin_step {name} {short} bare", langevin_step.arguments(*bare)
    yield from chains()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield from energy_launches(dtype)
        yield from norms(dtype)


def energy_launches(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield the launches of an energy network other than convolutions, the paper's shapes first."""

    def activations(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def sign_bits(channels: int, pixels: int) -> torch.Tensor:
        return torch.empty(channels // 32, pixels, dtype=torch.int32)

    short = str(dtype).removeprefix("torch.")
    batch, state = 16, torch.zeros(4, dtype=torch.int64)
    half = dtype == torch.float16
    for image, side, width in ((3, 32, 128), (4, 7, 96))[: 2 if half else 1]:
        name = f"{image}×{side}×{side} to {width} {WIDE} {short}"
        y = torch.empty(batch, image, side, side)
        weight, bias = activations(9, image, width), torch.empty(width)
        # With one label, and with a linear combination of two.
        for terms in (1, 2):
            maps, suffix = activations(terms * batch, side, side, width), f"{name} ×{terms}"
            signs = sign_bits(width, terms * batch * side * side)
            yield f"stem {suffix}", stem.arguments(y, weight, bias, terms, maps, signs)
            launch = stem_gradient.gradient_arguments(maps, weight, terms, 8.0, y)
            yield f"stem_gradient {suffix}", launch
        scalar, per_sample = torch.zeros(1), torch.zeros(batch)
        full = (y, (scalar, scalar, scalar, per_sample), state, state[:1])
        graph = (y, (scalar, scalar, scalar, 1.0), state, state[:1])
        for kind, terms, rest in (("full", 1, full), ("graph", 1, graph), ("graph", 2, graph)):
            maps = activations(terms * batch, side, side, width)
            launch = stem_gradient.langevin_arguments(y, maps, weight, terms, *rest)
            yield f"stem_langevin {name} ×{terms} {kind}", launch
    for side, width in ((16, 256), (14, 32))[: 2 if half else 1]:
        name = f"{side}×{side}×{width} {WIDE} {short}"
        small, large = (activations(batch, s, s, width) for s in (side, 2 * side))
        signs = sign_bits(width, batch * side * side)
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
    """Yield an initializer's norms: wide maps, few pixels, groups of three and of nine channels."""
    short = str(dtype).removeprefix("torch.")
    shapes = ((32, 128, WIDE), (8, 64, WIDE), (28, 96, WIDE), (5, 18, "odd"))
    for side, channels, kind in shapes[: 4 if dtype == torch.float16 else 1]:
        name = f"norm_silu {side}×{side}×{channels} {kind} {short}"
        x, weight = torch.empty(16, side, side, channels, dtype=dtype), torch.empty(channels)
        row = torch.empty(1, 2 * channels)
        yield f"{name} full", norm_silu.arguments(x, weight, weight, weight, row, True, x)
        yield f"{name} bare", norm_silu.arguments(x, weight, weight, None, None, False, x)


def convolutions(arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield every use in every type at the paper's first stage, and the largest at other shapes."""
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
    """Yield the epilogue of cuDNN's convolution for every use, also with an incomplete tile."""
    short = str(dtype).removeprefix("torch.")
    for batch, size, channels in ((64, 32, 128), (33, 7, 96))[: 2 if dtype == torch.float16 else 1]:
        for use, arguments in conv3x3_uses(batch, size, channels, channels, dtype).items():
            out, _, _, row, residual, signs, signs_out, _, *flags = arguments
            launch = cudnn.arguments(out, out, row, residual, signs, signs_out, *flags)
            name = f"{WIDE} {short} {batch}×{size}×{size}×{channels}"
            yield f"conv3x3_epilogue {name} {use}", launch


def chains() -> Iterator[tuple[str, Launch]]:
    """Yield the launches of `mlp_chain`, whose kernel is the same for every program."""
    weight, bias = torch.empty(128, 2), slice(0, 128)
    program = Program((2, 128), (Linear(0, 1, weight, bias),), torch.empty(128), Activation("silu"))
    y, rows, table = torch.empty(100, 2), torch.empty(100, 128), torch.empty(4, 100)
    rng = torch.zeros(4, dtype=torch.int64)
    for precision in ("fp32", "bf16", "fp16"):
        packed = PackedWeights(program, precision, value=False)
        full = (y, rows, 9, table, (0.0,) * 4, (0, 0, 0), rng, rng[:1])
        bare = (None, None, 9, None, (0.1,) * 4, (1, 2, 3), None, None)
        name = f"mlp_chain {WIDE} {precision}"
        yield f"{name} full", mlp_chain.arguments(packed, y, *full)
        yield f"{name} bare", mlp_chain.arguments(packed, y, *bare)
        packed, value = PackedWeights(program, precision, value=True), torch.empty(100)
        gradient = (*bare, value, y)
        yield f"{name} gradient", mlp_chain.arguments(packed, y, *gradient)


def triton_kernels(arch: int, part: int) -> Iterator[Result]:
    """Yield the results of every `PARTS`-th Triton kernel."""
    triton.runtime.driver.set_active(Target(arch))
    for name, launch in islice(launches(arch), part, None, PARTS):
        yield compiled(f"triton {name}", launch, arch)


def compiled(name: str, launch: Launch, arch: int) -> Result:
    """Compile a launch for the architecture of Triton's current target and return the result."""
    kernel = launch.kernel.warmup(**launch.values, **launch.options, grid=(launch.programs,))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        (result,) = read(Path(file.name), arch)
    # The shared memory is set at the launch, so the machine code does not contain it.
    return replace(Result(name, *result), shared=kernel.metadata.shared)


def cuda_kernels(arch: int, nvcc: str, part: int) -> Iterator[Result]:
    """Yield the results of every `PARTS`-th source file of csrc/cuda."""
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
    """Yield the fields of `Result` after the name, for each function."""
    usage = _tool("--dump-resource-usage", str(cubin))
    code = {
        name: body
        for name, body in re.findall(r"Function : (\S+)\n(.*?)(?=\n\s+Function :|\Z)",
                                     _tool("-sass", str(cubin)), re.DOTALL)
    }  # fmt: skip
    functions = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage
    )
    assert functions, usage
    for name, registers, stack, shared, local in sorted(functions):
        accesses = re.findall(r"\b(?:LDG|LDGSTS|STG)\.E[.\w]*", code[name])
        wide = sum(".128" in access for access in accesses)
        tiles = tuple(i for i in TILE_INSTRUCTIONS if re.search(rf"\b{i}\b", code[name]))
        numbers = (int(n) for n in (registers, stack, local, shared))
        yield arch, *numbers, wide, len(accesses) - wide, tiles


def _tool(*arguments: str) -> str:
    command = [str(TOOLS / "cuobjdump"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(task: tuple[int, int], nvcc: str | None) -> list[Result]:
    """Return the results of a part of an architecture's kernels."""
    arch, part = task
    return [*triton_kernels(arch, part), *(cuda_kernels(arch, nvcc, part) if nvcc else ())]


def main() -> int:
    """Return 1 if a kernel has faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80,90,100")
    options = parser.parse_args()
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which(
        "/usr/local/cuda/bin/nvcc"
    )
    print(f"triton {triton.__version__}; nvcc: {nvcc or 'not found, CUDA C++ is skipped'}")
    print(
        f"{'registers':>9} {'stack':>5} {'local':>5} {'shared':>6} {'16 B':>4} {'less':>4}  tiles"
    )
    bad = 0
    archs = [int(name) for name in options.archs.split(",")]
    tasks = list(product(archs, range(PARTS)))
    # One process per task, because Triton keeps one target and compiles on one core.
    workers, spawn = min(len(tasks), os.cpu_count() or 1), get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, max_tasks_per_child=1) as pool:
        results = pool.map(kernels, tasks, repeat(nvcc))
        compiled_kernels = list(chain.from_iterable(results))
    for r in sorted(compiled_kernels, key=lambda r: (r.arch, r.name)):
        faults = r.faults()
        bad += bool(faults)
        print(
            f"{r.registers:9} {r.stack:5} {r.local:5} {r.shared:6} {r.wide:4} {r.narrow:4}"
            f"  {','.join(r.tiles):19} sm_{r.arch} {r.name}"
            f"{''.join(f'  <- {fault}' for fault in faults)}"
        )
    print(f"{bad} kernels have faults" if bad else "no kernel has faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
