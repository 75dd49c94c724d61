"""The README's tables of benchmarks: made from results, and up to date."""

import json
from pathlib import Path

import benchmark_table as script
import site_hooks

ROOT = Path(__file__).resolve().parents[1]


def line(device, medians, **more):
    ratios = {
        name: seconds / medians["ours"] for name, seconds in medians.items() if name != "ours"
    }
    rows = [
        {"group": "chains", "contender": name, "device": device, "median": seconds, "steps": 100}
        | ({"ratios": ratios, "others": medians} if name == "ours" else {})
        for name, seconds in medians.items()
    ]
    return {
        "date": "2030-01-02T03:04:05", "commit": "abcdefghij", "processor": "a CPU", "threads": 2,
        "devices": {"cpu": "x86_64", "cuda:0": "a GPU"}, "versions": {"torch": "9.9"},
        "rows": rows, **more,
    }  # fmt: skip


def test_rates_and_the_ratio_to_the_best_other(tmp_path):
    path = tmp_path / "results.jsonl"
    first = line("cpu", {"eager": 9.0, "ours": 9.0})
    last = line("cpu", {"eager": 0.5, "compiled": 0.25, "copy": 0.01, "ours": 0.1})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (first, last)))
    shown = script.tables(script.latest(script.lines(path))).splitlines()
    assert shown[0] == "CPU: a CPU, 2 threads, torch 9.9."
    assert shown[2] == (
        "| a second | eager | by hand | ours | ours / eager | ours / best other | measured |"
    )
    assert shown[4] == "| chains; steps | 200 | 400 | 1,000 | 5.00 | 2.50 | 2030-01-02, abcdefg |"
    assert shown[-1] == "GPU: not measured yet."


def test_a_later_run_replaces_the_groups_that_it_has():
    first, second = (line("cpu", {"eager": n, "ours": 0.5}) for n in (1.0, 2.0))
    first["rows"] += [{**row, "group": "other chains"} for row in first["rows"]]
    second["commit"] = "another-modified"
    shown = script.tables(script.latest([first, second]))
    assert "| chains; steps | 50.0 | 200 | 4.00 | 4.00 | 2030-01-02, another-modified |" in shown
    assert "| other chains; steps | 100 | 200 | 2.00 | 2.00 | 2030-01-02, abcdefg |" in shown


def test_a_group_is_of_one_run_and_has_one_of_ours():
    first = line("cpu", {"eager": 1.0, "compiled": 0.75, "ours": 0.5})
    second, third = (line("cpu", {"eager": 2.0, "ours": 1.0}) for _ in range(2))
    third["rows"] = third["rows"][:1]
    (group,) = script.latest([first, second, third])["cpu"]
    assert group.line is second
    assert set(group.rows) == {"eager", "ours"}


def test_machines_have_tables_of_their_own():
    peaks = {"fp32": 1.0, "bf16": 2.0}, {"fp32": 1.0, "bf16": 0.5}
    lines = [line("cpu", {"eager": 1.0, "ours": 0.5}, peak_gflops=peak) for peak in peaks]
    for row in lines[1]["rows"]:
        row["group"] = "other chains"
    shown = script.tables(script.latest(lines))
    assert "CPU: a CPU, with bfloat16, 2 threads, torch 9.9.\n\n| a second |" in shown
    assert "CPU: a CPU, without bfloat16, 2 threads, torch 9.9.\n\n| a second |" in shown


def test_a_gpu_has_its_own_table():
    shown = script.tables(script.latest([line("cuda:0", {"eager": 1.0, "ours": 0.5})]))
    assert shown.startswith("CPU: not measured yet.\n\nGPU: a GPU, torch 9.9.\n")


def test_the_neighbours_rows(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(site_hooks.table, "RESULTS", path)
    timed = line("cpu", {"eager": 1.0, "ebmkit": 0.75, "ours": 0.5})
    other = line("cpu", {"eager": 1.0, "ours": 0.5}, commit="another")
    for row in other["rows"]:
        row["group"] = "other chains"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (timed, other)))
    assert "| chains; steps | 100 | 133 | 200 |" in site_hooks.peers_speed()
    assert "other chains" not in site_hooks.peers_speed()
    path.write_text(json.dumps(other) + "\n")
    assert site_hooks.peers_speed() == "CPU: not measured yet.\n\nGPU: not measured yet."
    assert "| 2030-01-02, another | a CPU, 2 threads | other chains, ours |" in site_hooks.history()


def test_only_what_stands_between_the_markers_is_replaced():
    readme = f"above\n{script.BEGIN}\nold\n{script.END}\nbelow\n"
    expected = f"above\n{script.BEGIN}\nnew\n{script.END}\nbelow\n"
    assert script.inserted(readme, "new") == expected


def test_the_readme_shows_measured_results():
    """Of the latest run, or of an earlier one where somebody has measured since."""
    readme, results = script.README.read_text(), script.lines(script.RESULTS)
    found = [script.highlights(script.latest(results[:n])) for n in range(1, len(results) + 1)]
    assert any(script.inserted(readme, script.tables(rows)) == readme for rows in found)
