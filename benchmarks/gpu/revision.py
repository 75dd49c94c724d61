"""The revision of the library that a result was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit(given: str | None) -> str | None:
    """Return the commit as given, or git's, marked where tracked files differ from it.

    Results do not count: a run's own line would mark the next.
    """
    if given:
        return given
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-modified" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
