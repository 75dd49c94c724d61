"""What the documentation takes from the program itself: tables of results and the commands' help.

MkDocs calls `on_page_markdown` for each page; a line ``<!-- generated: NAME -->`` becomes what
`GENERATED` has of that name.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import benchmark_table as table
import peers

LINE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
COMMANDS = (
    "train", "sample", "inpaint", "score", "evaluate", "tune", "import", "export", "app", "bench",
    "about", "demo",
)  # fmt: skip


def benchmarks() -> str:
    """The newest results, as in the README."""
    return table.tables(table.latest(table.lines(table.RESULTS)))


def history() -> str:
    """Every run on record: how much faster than eager each group was, in that run."""
    results = table.lines(table.RESULTS)
    head = ["commit", "date", "processor", "group", "ours / eager", "ours / best other"]
    rows = [head, ["---", "---", "---", "---", "---:", "---:"]]
    for line in reversed(results):
        made = [(line["commit"] or "unknown")[:7], line["date"][:10], line["processor"]]
        for row in line["rows"]:
            if table.is_ours(row["contender"]) and "eager" in row.get("ratios", {}):
                name = f"{row['group']}, {row['contender']}"
                rows.append([*made, name, *table.ratios(row)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def peers_speed() -> str:
    """The rows of the newest results in which a neighbour is timed."""
    head, *rows = [line for line in benchmarks().splitlines() if line.startswith("|")]
    titles = [cell.strip() for cell in head.split("|")]
    at = [titles.index(name) for name in ("torchebm", "ebmkit")]
    timed = [row for row in rows if any(row.split("|")[i].strip() for i in at)]
    return "\n".join([head, *timed])


def commands() -> str:
    """The help of each command."""
    from cdrl_fast.cli import main

    parts = []
    for name in COMMANDS:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([name, "--help"])
        parts += [f"## cdrl-fast {name}", f"```text\n{shown.getvalue().strip()}\n```"]
    return "\n\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "history": history,
    "commands": commands,
    "peers": peers.table,
    "peers-speed": peers_speed,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: the page with its generated parts.

    Raises:
        KeyError: a name that nothing generates.
    """
    return LINE.sub(lambda found: GENERATED[found[1]](), markdown)
