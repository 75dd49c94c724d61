"""Write the tables of the latest benchmark results: a few rows into README.md, all into the docs.

    python benchmarks/table.py            # print all tables
    python benchmarks/table.py --write    # put the highlights into README.md
    python benchmarks/table.py --check    # exit with 1 where README.md is out of date

Each row is one group of contenders from the newest run in benchmarks/results/benchmarks.jsonl that
timed one of ours in it, and names that run's day and commit. A run of a few benchmarks replaces
only their rows. CPUs, GPUs and different machines have separate tables. Every cell is a rate (more
is better) from the median of the rounds: updates, draws, Langevin steps of the whole batch or
samples per second. "Hand-tuned" is the fastest of the ways to improve on eager PyTorch that the
benchmark has: in place, compiled, or half precision with folded weights. The ratios are medians
over the rounds of ours, against eager and against the fastest other contender.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "benchmarks.jsonl"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: benchmarks/table.py --write -->", "<!-- end of benchmarks -->"
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
    # "afternoon" is what older results call the hand-tuned contender.
    "hand-tuned": ("eager in place", "compiled", "hand-tuned", "afternoon"),
    "torchebm": ("torchebm",),
    "ebmkit": ("ebmkit",),
}
BACKENDS = ("native", "cuda", "triton")
KINDS = {"cpu": "CPU", "cuda": "GPU"}
HIGHLIGHTS = (
    "sampling digits, batch 64",
    "energy gradient, paper's network, 32×32, batch 8",
    "energy gradient, width 32, 28×28, batch 64",
    "langevin network, batch 64",
    "langevin network, batch 2500",
    "langevin_step 256×3×32×32",
    "training, digits",
    "training, width 32",
)
"""The groups that the README shows."""

Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    """Return all results, the oldest first."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Group:
    """Contenders that were timed together.

    Attributes:
        line: the run that timed them.
        rows: by contender.
    """

    name: str
    line: Row
    rows: dict[str, Row]

    @property
    def best(self) -> str:
        """The fastest of ours."""
        return min(_raced(self.rows), key=lambda n: self.rows[n]["median"])


def _raced(rows: dict[str, Row]) -> list[str]:
    """Return our contenders that were timed beside eager."""
    return [n for n, row in rows.items() if is_ours(n) and "eager" in row.get("ratios", {})]


Found = dict[str, list[Group]]
"""Groups by kind of device."""


def latest(results: list[Row]) -> Found:
    """Return the latest complete run of each group, by kind of device."""
    found: dict[str, dict[str, Group]] = {kind: {} for kind in KINDS}
    for line in results:
        fresh: dict[tuple[str, str], dict[str, Row]] = {}
        for row in line["rows"]:
            kind = row["device"].split(":")[0]
            fresh.setdefault((kind, row["group"]), {})[row["contender"]] = row
        for (kind, name), rows in fresh.items():
            if _raced(rows):
                found[kind][name] = Group(name, line, rows)
    return {kind: list(groups.values()) for kind, groups in found.items()}


def machine(line: Row, kind: str = "cpu") -> str:
    """Return the machine that a run was timed on."""
    if kind != "cpu":
        return str(line["devices"]["cuda:0"])
    half, peak = "", line.get("peak_gflops")
    if peak:
        half = ", with bfloat16" if peak["bf16"] > 1.2 * peak["fp32"] else ", without bfloat16"
    return f"{line['processor']}{half}, {line['threads']} threads"


def revision(line: Row) -> str:
    """Return the day and the commit of a run."""
    commit, mark, _ = (line["commit"] or "unknown").partition("-modified")
    return f"{line['date'][:10]}, {commit[:7]}{mark}"


def tables(found: Found) -> str:
    """Return all tables as Markdown; a kind of device without results says so."""
    parts = []
    for kind, title in KINDS.items():
        places: dict[str, list[Group]] = {}
        for group in found[kind]:
            where = f"{machine(group.line, kind)}, torch {group.line['versions']['torch']}"
            places.setdefault(where, []).append(group)
        parts += [f"{title}: {where}.\n\n{_table(groups)}" for where, groups in places.items()]
        if not places:
            parts.append(f"{title}: not measured yet.")
    return "\n\n".join(parts)


def highlights(found: Found) -> Found:
    """Return the groups that the README shows, in its order."""
    return {
        kind: [group for name in HIGHLIGHTS for group in groups if group.name == name]
        for kind, groups in found.items()
    }


def _table(groups: list[Group]) -> str:
    seen = {name for group in groups for name in group.rows[group.best]["others"]}
    others = [title for title, names in OTHERS.items() if seen & set(names)]
    head = ["per second", *others, "ours", "ours / eager", "ours / best other", "measured"]
    body = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    return "\n".join(_line(cells) for cells in [*body, *(_cells(g, others) for g in groups)])


def is_ours(contender: str) -> bool:
    """Return whether a contender is a backend of this library."""
    return contender.startswith("ours") or contender in BACKENDS


def ratios(row: Row) -> list[str]:
    """Return how much faster ours is than eager and than the fastest other contender."""
    found = row["ratios"]
    known = [found[n] for names in OTHERS.values() for n in names if n in found]
    return [f"{found['eager']:.2f}", f"{min(known):.2f}"]


def _cells(group: Group, others: list[str]) -> list[str]:
    best = group.best
    row = group.rows[best]
    unit = next(u for u in UNITS if u in row)
    fastest = [
        min((row["others"][n] for n in OTHERS[title] if n in row["others"]), default=None)
        for title in others
    ]
    title = group.name if best in BACKENDS else group.name + best[len("ours") :]
    return [
        f"{title}; {unit}",
        *(_rate(row[unit], seconds) for seconds in (*fastest, row["median"])),
        *ratios(row),
        revision(group.line),
    ]


def _rate(work: float, seconds: float | None) -> str:
    if seconds is None:
        return ""
    rate = work / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(page: str, begin: str, end: str, shown: str) -> str:
    """Return the page with the text between two markers replaced."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n{shown}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where --check finds README.md out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="put the highlights into README.md")
    parser.add_argument("--check", action="store_true", help="fail where README.md is out of date")
    options = parser.parse_args(arguments)
    found = latest(lines(options.results))
    old = README.read_text()
    new = between(old, BEGIN, END, tables(highlights(found)))
    if options.check:
        if new != old:
            print("README.md is out of date: run python benchmarks/table.py --write")
        return int(new != old)
    print(tables(found))
    if options.write:
        README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
