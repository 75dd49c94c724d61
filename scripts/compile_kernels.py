"""Compiles every GPU kernel to machine code, on a machine without a GPU, and reads what came out.

    python scripts/compile_kernels.py --archs 80,90,100

For each Triton kernel, with the arguments the library would launch it with, and for each kernel of
csrc/cuda where nvcc is found: registers, stack and spilled bytes, and the widths of its loads and
stores. Fails where a kernel uses stack or spills, or where whole, aligned arrays are not moved 16
bytes at a time.
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
from dataclasses import dataclass
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from cdrl_fast.ops.device import Launch  # noqa: E402
from cdrl_fast.ops.langevin_step import triton as langevin_step  # noqa: E402
from cdrl_fast.ops.mlp_chain import Activation, Linear, Program  # noqa: E402
from cdrl_fast.ops.mlp_chain import triton as mlp_chain  # noqa: E402
from cdrl_fast.ops.mlp_chain.plan import Packed  # noqa: E402
from cdrl_fast.ops.normal import triton as normal  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = "wide"


@dataclass(frozen=True)
class Result:
    """What a kernel became; ``wide`` and ``narrow`` count global loads and stores by width."""

    name: str
    arch: int
    registers: int
    stack: int
    local: int
    shared: int
    wide: int
    narrow: int

    def faults(self) -> list[str]:
        found = []
        if self.stack or self.local:
            found.append(f"{self.stack} bytes of stack, {self.local} of local memory")
        if WIDE in self.name and not self.wide:
            found.append("no 16-byte loads and stores")
        return found


class Target:
    """Stands in for Triton's driver: a current device of some architecture that runs nothing."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are cached by device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def launches() -> Iterator[tuple[str, Launch]]:
    """The library's launches; those called wide have whole samples on 16-byte boundaries."""
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


def chains() -> Iterator[tuple[str, Launch]]:
    """The launches of `mlp_chain`, whose kernel is the same for every program."""
    weight, bias = torch.empty(128, 2), slice(0, 128)
    program = Program((2, 128), (Linear(0, 1, weight, bias),), torch.empty(128), Activation("silu"))
    y, rows, table = torch.empty(100, 2), torch.empty(100, 128), torch.empty(4, 100)
    words = torch.zeros(4, dtype=torch.int64)
    for precision in ("fp32", "bf16", "fp16"):
        packed = Packed(program, precision, value=False)
        full = (y, rows, 9, table, (0.0,) * 4, (0, 0, 0), words, words[:1])
        bare = (None, None, 9, None, (0.1,) * 4, (1, 2, 3), None, None)
        name = f"mlp_chain {WIDE} {precision}"
        yield f"{name} full", mlp_chain.arguments(packed, None, y, *full)
        yield f"{name} bare", mlp_chain.arguments(packed, None, y, *bare)
        packed, value = Packed(program, precision, value=True), torch.empty(100)
        asked = (*bare, value, y)
        yield f"{name} gradient", mlp_chain.arguments(packed, None, y, *asked)


def triton_kernels(arch: int) -> Iterator[Result]:
    triton.runtime.driver.set_active(Target(arch))
    for name, launch in launches():
        made = launch.kernel.warmup(**launch.values, **launch.options, grid=(launch.programs,))
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            for result in read(Path(file.name), arch):
                yield Result(f"triton {name}", *result)


def cuda_kernels(arch: int, nvcc: str) -> Iterator[Result]:
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin"]
            subprocess.run(
                [*command, "-I", str(ROOT / "csrc"), "-o", str(cubin), str(source)], check=True
            )
            for i, result in enumerate(read(cubin, arch)):
                name = f"cuda {source.stem} {i}"
                yield Result(f"{name} {WIDE}" if result[-2] else name, *result)


def read(cubin: Path, arch: int) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """What `Result` holds of each function, but for the name."""
    usage = _tool("--dump-resource-usage", str(cubin))
    code = {
        name: body
        for name, body in re.findall(r"Function : (\S+)\n(.*?)(?=\n\s+Function :|\Z)",
                                     _tool("-sass", str(cubin)), re.DOTALL)
    }  # fmt: skip
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found, usage
    for name, registers, stack, shared, local in sorted(found):
        accesses = re.findall(r"\b(?:LDG|STG|LDGSTS)\.E[.\w]*", code[name])
        wide = sum(".128" in access for access in accesses)
        yield arch, int(registers), int(stack), int(local), int(shared), wide, len(accesses) - wide


def _tool(*arguments: str) -> str:
    command = [str(TOOLS / "cuobjdump"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Returns 1 where a kernel is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80,90,100")
    options = parser.parse_args()
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which(
        "/usr/local/cuda/bin/nvcc"
    )
    print(f"triton {triton.__version__}; nvcc: {nvcc or 'not found, CUDA C++ is left out'}")
    print(f"{'registers':>9} {'stack':>5} {'local':>5} {'shared':>6} {'16 B':>4} {'less':>4}")
    bad = 0
    for arch in (int(name) for name in options.archs.split(",")):
        results = list(triton_kernels(arch))
        results += list(cuda_kernels(arch, nvcc)) if nvcc else []
        for r in results:
            faults = r.faults()
            bad += bool(faults)
            print(
                f"{r.registers:9} {r.stack:5} {r.local:5} {r.shared:6} {r.wide:4} {r.narrow:4}"
                f"  sm_{arch} {r.name}{''.join(f'  <- {fault}' for fault in faults)}"
            )
    print(f"{bad} kernels are not as they should be" if bad else "all as they should be")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
