"""The revision of the library in the results of benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit(name: str | None) -> str | None:
    """Return ``name``, or git's commit, marked "-modified" if tracked files differ from it.

    Results are ignored, because each run changes them.
    """
    if name:
        return name
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-modified" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
