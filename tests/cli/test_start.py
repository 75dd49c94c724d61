"""Neither the import of the package, nor help, completion or a wrong argument load torch."""

import subprocess
import sys

import pytest

PACKAGE = """
import sys
import cdrl_fast
from cdrl_fast import CDRLError, SampleRequest, TrainConfig
assert "Sampler" in dir(cdrl_fast)
print("torch" in sys.modules)
cdrl_fast.data.Dataset, cdrl_fast.ops.normal, cdrl_fast.Sampler
print("torch" in sys.modules)
"""
COMMAND = """
import sys
from cdrl_fast.cli.main import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print("torch" in sys.modules)
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_names_are_imported_on_first_use():
    assert run(PACKAGE).stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("--version", 0),
        ("--help", 0),
        ("train --help", 0),
        ("sample --help", 0),
        ("import --help", 0),
        ("--tyro-print-completion bash", 0),
        ("sample --nothing", 2),
        ("train --recipe nothing", 2),
        ("export", 2),
    ],
)
def test_the_command_line_loads_torch_only_to_compute(line, status):
    done = run(COMMAND, *line.split())
    assert done.returncode == status, done.stderr
    assert done.stdout.split()[-1] == "False"
