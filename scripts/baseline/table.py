"""The short table at the end of a run."""

from __future__ import annotations

from typing import Any

Sections = dict[str, Any]


def lines(data: dict[str, Any]) -> list[str]:
    """At most 40 lines of key figures."""
    sections = data["sections"]
    found = data.get("environment", {})
    rows = [
        f"{found.get('device_name', found.get('device'))}, torch {found.get('torch')}, "
        f"triton {found.get('triton')}, commit {str(found.get('commit'))[:12]}"
    ]
    rows.append(_states(sections))
    rows += _copies(sections)
    rows += _matmuls(sections)
    rows += _convolutions(sections)
    rows += _shapes(sections)
    rows += _runs(sections, "reference chain", "chain", "ms/image")
    rows += _runs(sections, "reference training", "iteration", "ms/image")
    rows += _runs(sections, "afternoon", "uncompiled", "ms/image")
    rows += _runs(sections, "compiled", "compiled", "ms/image")
    return rows[:40]


def _figures(sections: Sections, name: str) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = sections.get(name, {}).get("figures", {})
    return figures


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _copies(sections: Sections) -> list[str]:
    figures = _figures(sections, "copy")
    rows = []
    for where in ("cold", "in L2"):
        parts = [
            f"{name.removesuffix(where).replace(' ', '')} {f['bytes_per_second'] / 1e9:.0f}"
            for name, f in figures.items()
            if name.endswith(where)
        ]
        rows += [f"copy, {where}, GB/s: " + ", ".join(parts)] if parts else []
    return rows


def _matmuls(sections: Sections) -> list[str]:
    rows: dict[str, list[str]] = {}
    for name, figure in _figures(sections, "matmul").items():
        kind, rest = name.split(" ", 1)
        rows.setdefault(kind, []).append(f"{rest}: {figure['flops_per_second'] / 1e12:.4g}")
    return [f"matmul {kind}, TFLOP/s: " + ", ".join(parts) for kind, parts in rows.items()]


def _convolutions(sections: Sections) -> list[str]:
    rows: dict[str, list[str]] = {}
    for name, figure in _figures(sections, "convolution").items():
        kind, _, batch, *rest = name.split(" ")
        if rest == ["sum"]:
            per_image = 1e6 * figure["seconds"] / int(batch)
            share = percent(figure["share_of_matmul"])
            rows.setdefault(kind, []).append(f"{batch}: {per_image:.4g} ({share})")
    title = "all convolutions of a gradient, µs/image (share of matmul) by batch"
    return [f"{kind} {title}: " + ", ".join(parts) for kind, parts in rows.items()]


def _shapes(sections: Sections) -> list[str]:
    """Each convolution by itself, in one precision and at the batch measured first."""
    rows: dict[str, list[str]] = {}
    first = None
    for name, figure in _figures(sections, "convolution").items():
        kind, _, batch, *rest = name.split(" ")
        first = first or (kind, batch)
        if (kind, batch) == first and rest != ["sum"]:
            rate, share = figure["flops_per_second"] / 1e12, percent(figure["share_of_matmul"])
            title = f"{kind} batch {batch} {rest[0]} {rest[1]}"
            rows.setdefault(title, []).append(f"{' '.join(rest[2:])} {rate:.4g} ({share})")
    return [f"{title}, TFLOP/s: " + ", ".join(parts) for title, parts in rows.items()]


def _runs(sections: Sections, section: str, what: str, unit: str) -> list[str]:
    rows = []
    for name, figure in _figures(sections, section).items():
        if "seconds_per_image" in figure:
            per_image = 1e3 * figure["seconds_per_image"]
            share = percent(figure["share_of_matmul"])
            rows.append(
                f"{what}, {name}: {per_image:.4g} {unit}, {share} of {figure['matmul_rate']} matmul"
            )
    return rows


def _states(sections: Sections) -> str:
    parts = []
    for name, section in sections.items():
        lost = [f"{len(section[k])} {k}" for k in ("failed", "skipped") if section[k]]
        parts.append(f"{name} {section['status']}" + (f" ({', '.join(lost)})" if lost else ""))
    return "sections: " + "; ".join(parts)
