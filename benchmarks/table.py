"""Write the tables of the latest benchmark results: a few rows into README.md, all into the docs.

    python benchmarks/table.py            # print all rows
    python benchmarks/table.py --write    # write the short table into README.md
    python benchmarks/table.py --check    # exit with 1 if README.md is out of date

Each row is one group of contenders from the newest run in benchmarks/results/benchmarks.jsonl that
timed this library in it. A run of a few benchmarks replaces only their rows. In the full tables,
CPUs, GPUs and different machines are separate, and each row names its run's day and commit. Every
cell is a rate (more is better) from the median of the rounds: updates, draws, Langevin steps of the
whole batch or samples per second. "Hand-tuned" is the fastest of the benchmark's improvements on
eager PyTorch: in place, compiled, or half precision with folded weights. The last columns are the
medians over the rounds of how many times faster ours is than eager and than the fastest other
contender.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "benchmarks.jsonl"
RENAMED = {"afternoon": "hand-tuned"}
"""Names of contenders in older results, and today's names."""
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
    "hand-tuned": ("eager in place", "compiled", "hand-tuned"),
    "torchebm": ("torchebm",),
    "ebmkit": ("ebmkit",),
}
"""The columns of other contenders."""
BACKENDS = ("native", "cuda", "triton")
KINDS = {"cpu": "CPU", "cuda": "GPU"}
HIGHLIGHTS = {
    "sampling digits, batch 64": "samples of digits, batch 64",
    "langevin network, batch 64": "Langevin steps of a small network, batch 64",
    "energy gradient, paper's network, 32×32, batch 8": "gradients of the paper's energy, batch 8",
    "training, digits": "training iterations on digits, batch 64",
}
"""The groups that the README shows, and their titles there."""

Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    """Return all results, the oldest first, with today's names of contenders."""
    if not path.exists():
        return []
    results = [json.loads(text) for text in path.read_text().splitlines()]
    for row in (row for line in results for row in line["rows"]):
        row["contender"] = RENAMED.get(row["contender"], row["contender"])
        for key in ("others", "ratios"):
            if key in row:
                row[key] = {RENAMED.get(name, name): value for name, value in row[key].items()}
    return results


@dataclass(frozen=True)
class Group:
    """Contenders that were timed together.

    Attributes:
        name: the name of the group.
        line: the run that timed them.
        rows: the result rows by contender.
    """

    name: str
    line: Row
    rows: dict[str, Row]

    @property
    def best(self) -> str:
        """The fastest contender of this library."""
        return min(_raced(self.rows), key=lambda n: self.rows[n]["median"])

    @property
    def rates(self) -> dict[str, float]:
        """The units per second of each column, "ours" included, that has a contender."""
        row = self.rows[self.best]
        seconds = {"ours": row["median"]}
        for title, names in OTHERS.items():
            timed = [row["others"][name] for name in names if name in row["others"]]
            if timed:
                seconds[title] = min(timed)
        return {title: row[self.unit] / value for title, value in seconds.items()}

    @property
    def unit(self) -> str:
        """The unit of work that rates count."""
        return next(unit for unit in UNITS if unit in self.rows[self.best])


def _raced(rows: dict[str, Row]) -> list[str]:
    """Return the contenders of this library that were timed next to eager."""
    return [n for n, row in rows.items() if is_ours(n) and "eager" in row.get("ratios", {})]


GroupsByKind = dict[str, list[Group]]
"""Groups by kind of device."""


def latest(results: list[Row]) -> GroupsByKind:
    """Return the latest complete run of each group, by kind of device."""
    newest: dict[str, dict[str, Group]] = {kind: {} for kind in KINDS}
    for line in results:
        rows_by_group: dict[tuple[str, str], dict[str, Row]] = {}
        for row in line["rows"]:
            kind = row["device"].split(":")[0]
            rows_by_group.setdefault((kind, row["group"]), {})[row["contender"]] = row
        for (kind, name), rows in rows_by_group.items():
            if _raced(rows):
                newest[kind][name] = Group(name, line, rows)
    return {kind: list(groups.values()) for kind, groups in newest.items()}


def machine(line: Row, kind: str = "cpu") -> str:
    """Return the name of the machine that a run was timed on."""
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


def tables(groups_by_kind: GroupsByKind) -> str:
    """Return all rows as Markdown, one table per machine."""
    parts = []
    for kind, title in KINDS.items():
        by_machine: dict[str, list[Group]] = {}
        for group in groups_by_kind[kind]:
            name = f"{machine(group.line, kind)}, torch {group.line['versions']['torch']}"
            by_machine.setdefault(name, []).append(group)
        parts += [f"{title}: {name}.\n\n{_table(groups)}" for name, groups in by_machine.items()]
        if not by_machine:
            parts.append(f"{title}: not measured yet.")
    return "\n\n".join(parts)


def highlights(groups_by_kind: GroupsByKind) -> str:
    """Return the README's short tables as Markdown, one per measured kind of device."""
    parts = []
    for kind, groups in groups_by_kind.items():
        by_name = {group.name: group for group in groups}
        shown = [by_name[name] for name in HIGHLIGHTS if name in by_name]
        if shown:
            parts.append(f"{_short_table(shown)}\n\n{_sources(shown, kind)}")
    return "\n\n".join(parts)


def _short_table(groups: list[Group]) -> str:
    head = ["per second", "eager PyTorch", "hand-tuned", "ours", "times eager"]
    body = [head, ["---", *["---:"] * (len(head) - 1)]]
    for group in groups:
        rates = (group.rates.get(title) for title in ("eager", "hand-tuned", "ours"))
        times = ratios(group.rows[group.best])[0]
        cells = (_number(rate) or "–" for rate in rates)
        body.append([HIGHLIGHTS[group.name] + _variant(group), *cells, times])
    return "\n".join(_line(cells) for cells in body)


def _sources(groups: list[Group], kind: str) -> str:
    """Return a sentence with the machines, days and commits of the rows."""
    titles: dict[str, list[str]] = {}
    for group in groups:
        day, commit = revision(group.line).split(", ")
        source = f"{machine(group.line, kind)} ({day}, commit {commit.removesuffix('-modified')})"
        titles.setdefault(source, []).append(HIGHLIGHTS[group.name])
    first, *others = sorted(titles, key=lambda source: -len(titles[source]))
    parts = [first, *(f"{' and '.join(titles[source])}: {source}" for source in others)]
    return textwrap.fill(f"Measured on {'; '.join(parts)}.", 100)


def _table(groups: list[Group]) -> str:
    others = [title for title in OTHERS if any(title in group.rates for group in groups)]
    head = ["per second", *others, "ours", "times eager", "times best other", "measured"]
    body = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    return "\n".join(_line(cells) for cells in [*body, *(_cells(g, others) for g in groups)])


def is_ours(contender: str) -> bool:
    """Return whether a contender is a backend of this library."""
    return contender.startswith("ours") or contender in BACKENDS


def ratios(row: Row) -> list[str]:
    """Return how many times faster ours is than eager and than the fastest other contender."""
    by_name = row["ratios"]
    known = [by_name[n] for names in OTHERS.values() for n in names if n in by_name]
    return [f"{by_name['eager']:.2f}", f"{min(known):.2f}"]


def _cells(group: Group, others: list[str]) -> list[str]:
    return [
        f"{group.name}{_variant(group)}; {group.unit}",
        *(_number(group.rates.get(title)) for title in (*others, "ours")),
        *ratios(group.rows[group.best]),
        revision(group.line),
    ]


def _variant(group: Group) -> str:
    """Return what follows "ours" in the best contender's name, such as its precision."""
    return "" if group.best in BACKENDS else group.best[len("ours") :]


def _number(rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(page: str, begin: str, end: str, text: str) -> str:
    """Return the page with the text between two markers replaced."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 where --check finds README.md out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the short table into README.md")
    parser.add_argument("--check", action="store_true", help="fail if README.md is out of date")
    options = parser.parse_args(arguments)
    groups = latest(lines(options.results))
    old = README.read_text()
    new = between(old, BEGIN, END, highlights(groups))
    if options.check:
        if new != old:
            print("README.md is out of date: run python benchmarks/table.py --write")
        return int(new != old)
    print(tables(groups))
    if options.write:
        README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
