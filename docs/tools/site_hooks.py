"""Fill the documentation's generated parts: tables of results, and the commands' help.

MkDocs calls `on_page_markdown` for each page, which replaces a line ``<!-- generated: NAME -->`` by
the text that the function of that name in `GENERATED` returns.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parents[1] / "benchmarks")]

import table  # noqa: E402

LINE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
COMMANDS = (
    "train", "sample", "inpaint", "score", "evaluate", "tune", "import", "export", "app", "bench",
    "about", "demo",
)  # fmt: skip


def benchmarks() -> str:
    """Return the newest result of every benchmark."""
    return table.tables(table.latest(table.lines(table.RESULTS)))


def history() -> str:
    """Return every recorded run, with how many times faster than eager each group was in it."""
    results = table.lines(table.RESULTS)
    head = ["measured", "on", "group", "times eager", "times best other"]
    rows = [head, ["---", "---", "---", "---:", "---:"]]
    for line in reversed(results):
        for row in line["rows"]:
            if table.is_ours(row["contender"]) and "eager" in row.get("ratios", {}):
                machine = table.machine(line, row["device"].split(":")[0])
                name = f"{row['group']}, {row['contender']}"
                rows.append([table.revision(line), machine, name, *table.ratios(row)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def related_speed() -> str:
    """Return the newest results of the groups in which a related library was timed."""
    groups_by_kind = table.latest(table.lines(table.RESULTS))
    timed = {
        kind: [g for g in groups if {"torchebm", "ebmkit"} & set(g.rows[g.best]["others"])]
        for kind, groups in groups_by_kind.items()
    }
    return table.tables(timed)


def commands() -> str:
    """Return the help of each command."""
    from cdrl_fast.cli.main import main

    parts = []
    for name in COMMANDS:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([name, "--help"])
        parts += [f"## cdrl-fast {name}", f"```text\n{output.getvalue().strip()}\n```"]
    return "\n\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "history": history,
    "commands": commands,
    "related-speed": related_speed,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its generated parts; MkDocs calls this.

    Raises:
        KeyError: a name that nothing generates.
    """
    return LINE.sub(lambda match: GENERATED[match[1]](), markdown)
