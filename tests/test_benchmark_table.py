"""The README's tables of benchmarks: made from results, and up to date."""

import json
from pathlib import Path

import benchmark_table as script

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
    assert shown[0] == "CPU: a CPU, 2 threads, torch 9.9; 2030-01-02, commit abcdefg."
    assert shown[2] == ("| a second | eager | by hand | ours | ours / eager | ours / best other |")
    assert shown[4] == "| chains; steps | 200 | 400 | 1,000 | 5.00 | 2.50 |"
    assert shown[-1] == "GPU: not measured yet."


def test_a_later_run_of_the_same_commit_replaces_its_rows_alone():
    first, second, other = (line("cpu", {"eager": n, "ours": 0.5}) for n in (1.0, 2.0, 3.0))
    first["rows"] += [{**row, "group": "other chains"} for row in first["rows"]]
    shown = script.tables(script.latest([first, second]))
    assert "| chains; steps | 50.0 | 200 | 4.00 | 4.00 |" in shown
    assert "| other chains; steps | 100 | 200 | 2.00 | 2.00 |" in shown
    other["commit"] = "another"
    assert "other chains" not in script.tables(script.latest([first, second, other]))


def test_a_gpu_has_its_own_table():
    found = {"cpu": None, "cuda": line("cuda:0", {"eager": 1.0, "ours": 0.5})}
    assert script.tables(found).startswith("CPU: not measured yet.\n\nGPU: a GPU, torch 9.9;")


def test_only_what_stands_between_the_markers_is_replaced():
    readme = f"above\n{script.BEGIN}\nold\n{script.END}\nbelow\n"
    expected = f"above\n{script.BEGIN}\nnew\n{script.END}\nbelow\n"
    assert script.inserted(readme, "new") == expected


def test_the_readme_shows_measured_results():
    """Of the latest run, or of an earlier one where somebody has measured since."""
    readme, results = script.README.read_text(), script.lines(script.RESULTS)
    found = [script.highlights(script.latest(results[:n])) for n in range(1, len(results) + 1)]
    assert any(script.inserted(readme, script.tables(rows)) == readme for rows in found)
