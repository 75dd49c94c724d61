"""Fingerprints of the library's results, to compare two installations bit by bit.

Run by the Python of each installation, the old one first:

    OLD benchmarks/compare/results.py --make-run RUN
    OLD benchmarks/compare/results.py --run-folder RUN --out old.json
    NEW benchmarks/compare/results.py --run-folder RUN --out new.json --against old.json

A fingerprint is the SHA-256 of tensors' names, shapes, dtypes and bytes. With --run-folder, each
installation continues the old one's training. Exit status 1: a case differs from --against, is
missing on one side, or fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from langevin_cases import langevin_cases
from library import Cases, Result, environment, location
from sampler_cases import sampler_cases
from torch import Tensor
from training_cases import make_runs, resume_cases, training_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write: fingerprints by case")
    parser.add_argument("--against", type=Path, help="JSON file of another installation")
    parser.add_argument("--run-folder", type=Path, help="written by --make-run; adds its cases")
    parser.add_argument("--make-run", type=Path, help="only write run folders, into this folder")
    options = parser.parse_args()
    if options.make_run is None and options.out is None:
        parser.error("expected --out or --make-run")

    print(location())
    # The environment is compared as a case: it decides bits as much as the library does.
    found = {"environment": environment()}
    print(found["environment"], flush=True)
    if options.make_run is not None:
        make_runs(options.make_run)
        return 0
    if options.run_folder is None:
        print("no --run-folder: the cases that resume a run are left out")
    for name, function in all_cases(options.run_folder):
        for case, value in outcomes(name, function):
            if case in found:
                raise ValueError(f"two cases are named {case!r}")
            found[case] = value
            print(f"{value[:16] if len(value) == 64 else value}  {case}", flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")

    complaints = [f"{value}: {case}" for case, value in found.items() if value.startswith("failed")]
    if options.against is not None:
        complaints += differences(found, json.loads(options.against.read_text()))
    print(*complaints, f"{len(found)} cases, {len(complaints)} complaints", sep="\n")
    return 1 if complaints else 0


def all_cases(runs: Path | None) -> Cases:
    """Yield the name of each case and the function that computes its result."""
    yield from langevin_cases()
    yield from sampler_cases()
    yield from training_cases()
    if runs is not None:
        yield from resume_cases(runs)


def outcomes(name: str, function: Callable[[], Result]) -> Iterator[tuple[str, str]]:
    """Yield each part of a result with its fingerprint, or the case with its error."""
    try:
        result = function()
    except Exception as error:  # The other cases still tell something.
        yield name, f"failed, {type(error).__name__}: {error}"
        return
    parts = result if isinstance(result, Mapping) else {"": result}
    for part, value in parts.items():
        yield f"{name}: {part}" if part else name, fingerprint(value)


def fingerprint(value: Tensor | Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a tensor, or of several in the order of their names."""
    tensors = value if isinstance(value, Mapping) else {"": value}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(found: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return a line for each case that differs or is missing on one side."""
    lines = [f"missing here: {case}" for case in other if case not in found]
    lines += [f"missing in --against: {case}" for case in found if case not in other]
    lines += [f"differs: {case}" for case in found if found[case] != other.get(case, found[case])]
    return lines


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin slow other processes down; OpenMP reads this before torch is imported.
        environ = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        os.execve(sys.executable, sys.orig_argv, environ)
    sys.exit(main())
