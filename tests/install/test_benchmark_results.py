"""Tests of the results that a run of the benchmarks appends, and of its messages otherwise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cdrl_fast
from cdrl_fast import _extension

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parents[2]
# The benchmarks must run without the plug-in that reads the timeout option.
PYTEST = "['benchmarks/', '--benchmark-only', '--commit', 'abc', '-p', 'no:timeout']"
ABSENT = "from cdrl_fast import _extension; _extension._loaded = lambda: (None, 'switched off'); "


@pytest.fixture
def run(tmp_path):
    """Return a function that runs one benchmark in a small copy of the project.

    It returns the output and the lines of the results file.
    """
    (tmp_path / "benchmarks").mkdir()
    for name in ("conftest.py", "race.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "gpu").symlink_to(ROOT / "benchmarks" / "gpu")
    (tmp_path / "benchmarks" / "test_it.py").write_text(
        "def test_it(benchmark):\n    benchmark.group = 'a group'\n    benchmark(list)\n"
    )

    def start(before="", version=cdrl_fast.__version__):
        project = (ROOT / "pyproject.toml").read_text()
        current = f'version = "{cdrl_fast.__version__}"'
        (tmp_path / "pyproject.toml").write_text(project.replace(current, f'version = "{version}"'))
        code = f"{before}import pytest; raise SystemExit(pytest.main({PYTEST}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        path = tmp_path / "benchmarks" / "results" / "benchmarks.jsonl"
        return done.stdout, path.read_text().splitlines() if path.exists() else []

    return start


def test_a_line_names_the_backends(run):
    if _extension.load() is None:
        pytest.skip("there is no compiled module")
    output, (line,) = run()
    record = json.loads(line)
    assert record["used"] == cdrl_fast.about().used
    assert record["used"]["cpu"]["normal"] == "native"
    assert [row["group"] for row in record["rows"]] == ["a group"]
    assert "nothing appended" not in output
    assert "arning" not in output


def test_pure_python_is_not_appended_and_another_version_is_warned_of(run):
    output, lines = run(ABSENT, version="9.9")
    assert lines == []
    (message,) = [line for line in output.splitlines() if "nothing appended" in line]
    assert message.endswith("benchmarks.jsonl: cdrl_fast ran in pure Python: switched off")
    assert output.count("are of cdrl-fast 9.9 and time the installed") == 1
    assert f"the installed {cdrl_fast.__version__};" in output
