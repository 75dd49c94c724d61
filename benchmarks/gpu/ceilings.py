"""Measure this machine's rooflines: copy bandwidth and matrix rates.

    python benchmarks/gpu/ceilings.py --out rates.json
    python benchmarks/gpu/ceilings.py --out rates.json --device cpu --quick    # no GPU: tiny sizes

Needs torch alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}


def seconds(statement: str, names: dict[str, Any], min_run_time: float) -> float:
    """Return the median time of a statement."""
    timer = Timer(statement, globals=names)
    return float(timer.blocked_autorange(min_run_time=min_run_time).median)


def copy_rate(device: torch.device, size: int, min_run_time: float) -> float:
    """Return the bytes per second, read and written, of a copy of ``size`` bytes."""
    source = torch.ones(size // 4, device=device)
    names = {"source": source, "target": torch.empty_like(source)}
    return 2 * size / seconds("target.copy_(source)", names, min_run_time)


def matmul_rate(kind: str, device: torch.device, size: int, min_run_time: float) -> float:
    """Return the FLOP per second of a product of square matrices; "tf32" multiplies float32."""
    # Random, because products with zeros draw less power and run faster.
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[kind]) for _ in range(2))
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    names = {"torch": torch, "a": a, "b": b}
    return 2 * size**3 / seconds("torch.mm(a, b)", names, min_run_time)


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 2 if there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the script")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("ceilings: torch finds no CUDA device; use --device cpu", file=sys.stderr)
        return 2
    size, side, min_run_time = (2**16, 64, 0.01) if options.quick else (2**30, 8192, 0.5)
    rates = {kind: matmul_rate(kind, device, side, min_run_time) for kind in DTYPES}
    record = {
        "matmul_flops_per_second": rates,
        "copy_bytes_per_second": copy_rate(device, size, min_run_time),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
