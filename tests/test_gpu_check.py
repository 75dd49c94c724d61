"""The script for machines with a GPU: its parts are told apart, and it always comes to its end."""

import json
import sys
import time
from pathlib import Path

import gpu_check as script
import pytest

ROOT = Path(__file__).resolve().parents[1]


def part(name, code, **options):
    return script.Part(
        name, (sys.executable, "-c", code), options.pop("limit", 60.0), 0.0, **options
    )


@pytest.fixture
def check(tmp_path):
    return script.Check(tmp_path / "out", "abc", deadline=120.0, started=time.monotonic())


def test_every_outcome_is_told_apart_and_the_rest_goes_on(check):
    missing = script.Part("missing", ("no-such-tool",), 60.0, 0.0)
    check.run(
        [
            part("good", "print('1 passed')", judge=script.tests_ran),
            part("bad", "import sys; print('the reason'); sys.exit(3)"),
            part("slow", "import time; time.sleep(60)", limit=1.0),
            missing,
            part("skipping", "print('5 skipped')", judge=script.tests_ran),
            part("told", "import os; print(os.environ['WHO'])", environment={"WHO": "me"}),
        ]
    )
    written = json.loads((check.out / "gpu-check.json").read_text())["parts"]
    assert [p["status"] for p in written.values()] == [
        "passed", "failed", "failed", "failed", "failed", "passed",
    ]  # fmt: skip
    assert written["bad"]["why"] == "exit status 3"
    assert written["bad"]["tail"] == "the reason\n"
    assert written["slow"]["why"] == "stopped after 1 s"
    assert "no-such-tool" in written["missing"]["why"]
    assert written["skipping"]["why"] == "no test ran"
    assert "===== told" in (check.out / "log.txt").read_text()


def test_a_part_leaves_later_ones_their_time(check):
    check.deadline = 41.0
    later = script.Part("later", (sys.executable, "-c", ""), 60.0, 40.0)
    check.run([part("first", "import time; time.sleep(30)"), later])
    parts = check.results["parts"]
    assert parts["first"]["why"].startswith("stopped after 1 s")
    assert parts["later"]["status"] == "passed"
    check.deadline = 0.0
    check.run([later])
    assert parts["later"]["status"] == "skipped"


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("== 9 passed ==\n========= ERROR SUMMARY: 0 errors", None),
        ("9 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", None),
        ("9 passed\n========= ERROR SUMMARY: 2 errors", "the sanitizer found: 2 errors"),
        ("9 passed\n========= ERROR SUMMARY: 10 errors", "the sanitizer found: 10 errors"),
        ("9 passed", "the sanitizer printed no summary"),
        ("9 skipped\n========= ERROR SUMMARY: 0 errors", "no test ran"),
    ],
)
def test_what_the_sanitizer_says(output, why):
    assert script.sanitized(output) == why


def test_bandwidth_is_read_from_the_benchmarks(tmp_path):
    rows = [
        {
            "group": script.LARGE,
            "contender": name,
            "elements": 1000,
            "updates": 2,
            "median": seconds,
        }
        for name, seconds in (("copy", 1.0), ("cuda", 1.25), ("eager", 9.0))
    ]
    path = tmp_path / "benchmarks.jsonl"
    assert script.bandwidth(path) == {}
    path.write_text(json.dumps({"rows": rows}) + "\n")
    found = script.bandwidth(path)
    assert set(found) == {"copy", "cuda"}
    assert found["cuda"] == {"bytes_per_second": 25600.0, "share_of_copy": 0.8}


def test_the_whole_fits_its_deadline():
    todo = script.parts(Path("out"), "abc", "90")
    assert sum(p.need for p in todo) <= 525
    assert len({p.name for p in todo}) == len(todo)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "gpu", dict)
    assert script.main(["--out", str(tmp_path / "out")]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_finds_what_would_run(tmp_path):
    out = tmp_path / "out"
    # The script counts from its own start, which here is that of the tests.
    options = ["--deadline", "1e9", "--parts", "sanitizer initcheck"]
    assert script.main(["--dry-run", "--out", str(out), *options]) == 0
    found = json.loads((out / "gpu-check.json").read_text())["parts"]["sanitizer initcheck"]
    assert found["status"] == "passed"


@pytest.mark.slow
def test_a_dry_run_of_nothing_fails(check):
    part = script.Part("tests", (*script.PYTEST, "tests/ops", "-k", "no_such_test"), 60.0, 0.0)
    check.run([script.dry(part)])
    assert check.results["parts"]["tests"]["status"] == "failed"
