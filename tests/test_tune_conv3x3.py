"""The script that measures convolutions: all of it runs without a GPU, and nothing wrong wins."""

import json
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import tune_conv3x3 as script

from cdrl_fast.ops.conv3x3 import tiling, winners

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "tune_conv3x3.py"

CPU = torch.device("cpu")
PROBLEM = script.Problem("fp16", 8, 4, 32, 64, False)


def options(tmp_path, *more):
    made = script.parser().parse_args(["--dry-run", "--commit", "abc", *more])
    made.table, made.seconds = tmp_path / "table.json", 1e9
    return made


@pytest.fixture
def tuning(tmp_path, interpreter):
    return script.Tuning(options(tmp_path), CPU)


@pytest.mark.slow
def test_a_dry_run_does_all_but_timing(tmp_path, interpreter, monkeypatch):
    monkeypatch.setattr(script, "TINY", script.TINY[-1:])
    before = winners.COMMITTED.read_text()
    out = tmp_path / "out.jsonl"
    # The script counts from its own start, which here is that of the tests.
    unlimited = ["--seconds", "1e9"]
    assert script.main(["--dry-run", "--out", str(out), "--commit", "abc", *unlimited]) == 0
    run, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert run["dry_run"] is True
    assert run["run"]["commit"] == "abc"
    todo = list(script.problems(tiny=True))
    expected = [c.name for p in todo for c in script.contenders(p, tiling.INTERPRETED)]
    assert [row["contender"] for row in rows] == expected
    assert all(row["seconds"] > 0 and row["relative_error"] < 2e-3 for row in rows)
    assert max(row["share_of_best"] for row in rows) == 1.0
    table = winners.Table.read(tmp_path / "out.table.json")
    assert table.measured["90"]["commit"] == "abc"
    for problem in todo:
        assert table.find(problem.key(90), problem.pixels) is not None
    assert winners.COMMITTED.read_text() == before


def test_a_dry_run_cannot_write_the_librarys_table(tmp_path, capsys):
    arguments = ["--dry-run", "--out", str(tmp_path / "out"), "--table", str(winners.COMMITTED)]
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert "measures nothing" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_every_paper_shape_has_contenders_that_fit():
    found = list(script.problems(tiny=False))
    assert len(found) == len(set(found)) == 90
    for capability in (80, 90, 100):
        for problem in found:
            library, *ours = script.contenders(problem, capability)
            assert (library.name, library.blocks) == ("cudnn", None)
            assert 3 <= len(ours) == len(set(ours)) <= 8, problem
            shape = (problem.batch, problem.size, problem.size, problem.c_in)
            half = problem.kind != "tf32"
            for contender in ours:
                made = tiling.tiling(
                    shape, problem.c_out, half=half, exact=False, capability=capability,
                    aligned=True, blocks=contender.blocks,
                )  # fmt: skip
                assert made.blocks == contender.blocks


@pytest.mark.parametrize("room", ["cudnn", "triton"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given[0].mul_(1.01), "relative error"),
        (lambda given: given[0][0].fill_(float("nan")), "relative error"),
        (lambda given: given[6].bitwise_not_(), "wrong signs"),
        (None, "relative error"),
    ],
)
def test_a_wrong_contender_is_not_timed(tuning, monkeypatch, kernels, spoil, message):
    problem = script.Problem("fp16", 8, 4, 32, 32, False)
    case = script.Case(problem, CPU)
    contender = next(c for c in script.contenders(problem, 90) if c.backend == kernels)
    assert case.check(contender, 90) < 1e-3
    run = script.Contender.run

    def spoiled(self, capability, given, precision):
        if spoil is not None:  # else it writes nothing
            run(self, capability, given, precision)
            spoil(given)

    monkeypatch.setattr(script.Contender, "run", spoiled)
    with pytest.raises(AssertionError, match=message):
        case.check(contender, 90)
    tuning.capability = 90
    rows = tuning._measure(problem)
    assert all("AssertionError" in row["failed"] for row in rows)
    assert not tuning.options.table.exists()


def test_what_spills_or_does_not_compile_is_left_out(tuning):
    _, first, second, *_ = script.contenders(PROBLEM, tuning.capability)
    for contender in (first, second):
        tuning.compiled[tuning._kernel(PROBLEM, contender)] = Future()
    tuning.compiled[tuning._kernel(PROBLEM, first)].set_result(24)
    tuning.compiled[tuning._kernel(PROBLEM, second)].set_exception(RuntimeError("no such tile"))
    rows = {row["contender"]: row for row in tuning._measure(PROBLEM)}
    assert rows[first.name]["left_out"] == "24 bytes spilled"
    assert rows[second.name]["failed"] == "RuntimeError: no such tile"
    assert sum("seconds" in row for row in rows.values()) == len(rows) - 2


@pytest.mark.parametrize(("library", "room"), [(0.99, "triton"), (0.97, "cudnn"), (2.0, "triton")])
def test_the_library_wins_by_more_than_noise(tuning, library, kernels):
    cudnn, slow, fast = script.contenders(PROBLEM, tuning.capability)[:3]
    tuning._enter(PROBLEM, {cudnn: library, slow: 1.5, fast: 1.0})
    found = winners.Table.read(tuning.options.table).find(PROBLEM.key(90), PROBLEM.pixels)
    assert found == winners.Winner(kernels, fast.blocks)


@pytest.mark.parametrize(("seconds", "compiled"), [(0.5, True), (1.5, False)])
def test_without_time_the_old_winners_stay(
    tuning, tmp_path, monkeypatch, capsys, seconds, compiled
):
    """Too little for a convolution, or enough but for the compiler, which is at work still."""
    monkeypatch.setattr(script, "STARTED", time.monotonic())
    tuning.options.seconds = seconds

    class Pool:
        def submit(self, *call):
            future = Future()
            if compiled:
                future.set_result(0)
            return future

    with (tmp_path / "out.jsonl").open("w") as lines:
        assert tuning.run([PROBLEM], Pool(), lines) == 0
    assert time.monotonic() < script.STARTED + 20
    assert "1 of 1 convolutions are left" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").read_text()
    assert not tuning.options.table.exists()
