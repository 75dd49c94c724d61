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


def seconds(statement: str, names: dict[str, Any], least: float) -> float:
    """Return the median time of a statement."""
    return float(Timer(statement, globals=names).blocked_autorange(min_run_time=least).median)


def copy_rate(device: torch.device, size: int, least: float) -> float:
    """Return the bytes per second, read and written, of a copy of ``size`` bytes."""
    source = torch.ones(size // 4, device=device)
    names = {"source": source, "target": torch.empty_like(source)}
    return 2 * size / seconds("target.copy_(source)", names, least)


def matmul_rate(kind: str, device: torch.device, size: int, least: float) -> float:
    """Return the FLOP per second of a square product; "tf32" and "fp32" are of float32."""
    # Random, since products with zeros draw less power and run faster.
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[kind]) for _ in range(2))
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    return 2 * size**3 / seconds("torch.mm(a, b)", {"torch": torch, "a": a, "b": b}, least)


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("ceilings: torch finds no CUDA device; elsewhere --device cpu", file=sys.stderr)
        return 2
    size, side, least = (2**16, 64, 0.01) if options.quick else (2**30, 8192, 0.5)
    rates = {kind: matmul_rate(kind, device, side, least) for kind in DTYPES}
    found = {
        "matmul_flops_per_second": rates,
        "copy_bytes_per_second": copy_rate(device, size, least),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
