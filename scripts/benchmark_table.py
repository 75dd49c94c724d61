"""Turns the latest benchmark results into tables: a few rows for the README, all for the docs.

    python scripts/benchmark_table.py            # prints them
    python scripts/benchmark_table.py --write    # puts them into README.md

For CPUs and GPUs apart, the last line of benchmarks/results/benchmarks.jsonl that has one, with
earlier ones of its commit where it has no row. Every cell is a rate, more is better: updates,
draws, Langevin steps of the whole batch or samples a second, from the median of the rounds. All of
a row is measured in turn: the others between rounds of ours. "By hand" is the fastest of the ways
to improve on eager PyTorch that the benchmark has: in place, compiled, or half precision with
weights folded. The last columns are medians over these rounds of ours against eager and against the
fastest other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "benchmarks.jsonl"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: scripts/benchmark_table.py --write -->", "<!-- end of benchmarks -->"
UNITS = (
    "updates",
    "draws",
    "steps",
    "samples",
    "gradients",
    "proposals",
    "gigabytes",
    "calls",
    "iterations",
)
OTHERS = {
    "eager": ("eager",),
    "by hand": ("eager in place", "compiled", "afternoon"),
    "torchebm": ("torchebm",),
    "ebmkit": ("ebmkit",),
}
ROOMS = ("native", "cuda", "triton")
KINDS = {"cpu": "CPU", "cuda": "GPU"}
HIGHLIGHTS = (
    "sampling digits, batch 64",
    "energy gradient, paper's network, 32×32, batch 8",
    "energy gradient, width 32, 28×28, batch 64",
    "langevin network, batch 64",
    "langevin_step 256×3×32×32",
)
"""The groups that the README shows."""

Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    """All results, the oldest first."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def latest(results: list[Row]) -> dict[str, Row | None]:
    """By kind of device, the last line of results that was measured on one.

    A later run of the same commit, which may be of a few benchmarks, takes the place of their rows.
    """
    found: dict[str, Row | None] = dict.fromkeys(KINDS)
    for line in results:
        for kind in {row["device"].split(":")[0] for row in line["rows"]}:
            before = found[kind]
            again = before is not None and _commit(before) == _commit(line) != ""
            found[kind] = _joined(before, line) if before is not None and again else line
    return found


def _commit(line: Row) -> str:
    """Results themselves are written into the tree that they come from."""
    return (line["commit"] or "").removesuffix("-modified")


def _joined(first: Row, second: Row) -> Row:
    groups: dict[str, list[Row]] = {}
    for line in (first, second):
        fresh: dict[str, list[Row]] = {}
        for row in line["rows"]:
            fresh.setdefault(row["group"], []).append(row)
        groups |= fresh
    return {**second, "rows": [row for rows in groups.values() for row in rows]}


def tables(found: dict[str, Row | None]) -> str:
    """All tables as Markdown; a kind of device without results says so."""
    parts = []
    for kind, title in KINDS.items():
        line = found[kind]
        parts.append(f"{title}: not measured yet." if line is None else _table(kind, title, line))
    return "\n\n".join(parts)


def highlights(found: dict[str, Row | None]) -> dict[str, Row | None]:
    """The same results, of the README's groups alone and in their order."""
    return {
        kind: line
        and {
            **line,
            "rows": [row for name in HIGHLIGHTS for row in line["rows"] if row["group"] == name],
        }
        for kind, line in found.items()
    }


def _table(kind: str, title: str, line: Row) -> str:
    groups: dict[str, dict[str, Row]] = {}
    for row in line["rows"]:
        if row["device"].startswith(kind):
            groups.setdefault(row["group"], {})[row["contender"]] = row
    seen = {name for group in groups.values() for name in group}
    others = [title for title, names in OTHERS.items() if seen & set(names)]
    head = ["a second", *others, "ours", "ours / eager", "ours / best other"]
    rows = [_cells(name, group, others) for name, group in groups.items()]
    where = line["processor"] if kind == "cpu" else line["devices"]["cuda:0"]
    threads = f", {line['threads']} threads" if kind == "cpu" else ""
    versions = f"torch {line['versions']['torch']}"
    made = f"{line['date'][:10]}, commit {(line['commit'] or 'unknown')[:7]}"
    body = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(
        [f"{title}: {where}{threads}, {versions}; {made}.", "", *(_line(cells) for cells in body)]
    )


def is_ours(contender: str) -> bool:
    """Whether a contender is a room of this library's."""
    return contender.startswith("ours") or contender in ROOMS


def ratios(row: Row) -> list[str]:
    """How much faster one of ours is than eager, and than the fastest of all others."""
    found = row["ratios"]
    known = [found[n] for names in OTHERS.values() for n in names if n in found]
    return [f"{found['eager']:.2f}", f"{min(known):.2f}"]


def _cells(name: str, group: dict[str, Row], others: list[str]) -> list[str]:
    ours = [n for n in group if is_ours(n)]
    best = min(ours, key=lambda n: group[n]["median"])
    row = group[best]
    unit = next(u for u in UNITS if u in row)
    fastest = [
        min((row["others"][n] for n in OTHERS[title] if n in row["others"]), default=None)
        for title in others
    ]
    title = name if best in ROOMS else name + best[len("ours") :]
    return [
        f"{title}; {unit}",
        *(_rate(row[unit], seconds) for seconds in (*fastest, row["median"])),
        *ratios(row),
    ]


def _rate(work: float, seconds: float | None) -> str:
    if seconds is None:
        return ""
    rate = work / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(page: str, begin: str, end: str, shown: str) -> str:
    """A page with what stands between two markers replaced."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n{shown}\n{end}{rest.split(end)[1]}"


def inserted(readme: str, shown: str) -> str:
    """The README with what stands between the markers replaced."""
    return between(readme, BEGIN, END, shown)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="into README.md")
    options = parser.parse_args(arguments)
    found = latest(lines(options.results))
    print(tables(found))
    if options.write:
        README.write_text(inserted(README.read_text(), tables(highlights(found))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
