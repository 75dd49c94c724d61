"""Training by several processes (torchrun, gloo) equals training by one."""

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from cdrl_fast import CDRL, Trainer
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.run_folder import LOG
from tests.conftest import torchrun, weights
from tests.training.train_together import CONFIG, images, trainer

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 50


def launch(processes, *command):
    """Run a command by torchrun; return torchrun's exit status and output."""
    arguments = torchrun(processes, *command)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def run(processes, out, iterations=ITERATIONS, config=None, **options):
    options |= {"iterations": iterations, "config": config or {}}
    return launch(processes, "-m", "tests.training.train_together", out, json.dumps(options))


def logged(folder):
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    times = ("seconds", "samples_per_second", "share_of_roofline")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process: its folder and trainer, by the number of iterations."""

    @cache
    def run_alone(iterations):
        folder = tmp_path_factory.mktemp("alone")
        single = trainer()
        single.fit(iterations, folder=folder)
        return folder, single

    return run_alone


def check_same(folder, alone):
    actual, expected = logged(folder), logged(alone[0])
    assert len(actual) == len(expected) == alone[1].iteration
    for line, expected_line in zip(actual, expected, strict=True):
        assert line == pytest.approx(expected_line, abs=1e-9)
    resumed = Trainer.resume(folder, images())
    for network in ("model", "ema"):
        ours, reference = (weights(getattr(t, network)) for t in (resumed, alone[1]))
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("processes", "iterations"),
    [
        (2, 10),
        pytest.param(2, ITERATIONS, marks=pytest.mark.slow),
        pytest.param(4, ITERATIONS, marks=pytest.mark.slow),
    ],
)
def test_the_run_equals_that_of_one_process(processes, iterations, alone, tmp_path):
    status, output = run(processes, tmp_path, iterations)
    assert status == 0, output
    check_same(tmp_path, alone(iterations))


def test_in_float32_by_kernels(tmp_path):
    """FSDP2 and accumulation, with compiled kernels for the losses."""
    config = {"precision": "fp32", "warmup": 0}
    trainer(TrainConfig(**{**CONFIG, **config})).fit(4, folder=tmp_path / "alone")
    sharded = {**config, "shard": True, "accumulate": 2}
    status, output = run(2, tmp_path / "together", 4, sharded)
    assert status == 0, output
    actual, expected = logged(tmp_path / "together"), logged(tmp_path / "alone")
    for line, expected_line in zip(actual, expected, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_sharded_run_is_stopped_and_resumed_by_one_process(alone, tmp_path, again):
    """FSDP2 and accumulation: SIGTERM to one process stops both at a checkpoint, from which one
    process goes on; with ``again``, both go on for some iterations before it."""
    sharded = {"shard": True, "accumulate": 2}
    status, output = run(2, tmp_path, config=sharded, sigterm=12)
    assert status != 0
    assert "exitcode  : 143" in output
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir())[-1] == "00000013"
    if again:
        status, output = run(2, tmp_path, iterations=18, config=sharded, resume=True)
        assert status == 0, output
    Trainer.resume(tmp_path, images()).fit(ITERATIONS, folder=tmp_path)
    check_same(tmp_path, alone(ITERATIONS))


@pytest.mark.slow
def test_a_bad_iteration_of_one_process_is_skipped_by_all(tmp_path):
    """They also go back to a checkpoint together."""
    status, output = run(2, tmp_path, 12, {"patience": 1}, broken=[7, 8])
    assert status == 0, output
    lines = logged(tmp_path)
    assert [line["iteration"] for line in lines if "skipped" in line] == [7, 8]
    assert [line["rolled_back"] for line in lines if "rolled_back" in line] == [1]
    assert Trainer.resume(tmp_path, images()).iteration == 12


@pytest.mark.slow
def test_command_line(tmp_path):
    sizes = ["--energy-width", "8", "--energy-blocks", "1", "--initializer-width", "8"]
    out = tmp_path / "run"
    command = ["-m", "cdrl_fast", "train", "--recipe", "digits", "--out", out, *sizes]
    status, output = launch(2, *command, "--iterations", 2, "--device", "cpu")
    assert status == 0, output
    assert output.count("2 iterations") == 1
    assert CDRL.from_pretrained(str(out)).sample_shape == (1, 8, 8)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ValueError, match="multiple of 3 .*accumulate=3.*, got 8"):
        trainer(TrainConfig(batch_size=8, accumulate=3))
