"""`sample_to_folder`: the same bytes with any number of workers and after any interruption."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, CheckpointError, NoiseSchedule, ResNetEnergy, Sampler, conditional
from cdrl_fast.sampling.shards import sample_to_folder
from cdrl_fast.storage.folder import SUMS, read_folder
from tests.conftest import torchrun

ROOT = Path(__file__).resolve().parents[2]
N, BATCH = 23, 4
OPTIONS = {"seed": 5, "label": [1, "b"], "batch_size": BATCH, "steps": 2}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    energy = ResNetEnergy(1, 8, (1,), 1, classes=("a", "b"))
    return CDRL(energy, None, NoiseSchedule(levels=2, steps=2), sample_shape=(1, 4, 4)).eval()


@pytest.fixture(scope="module")
def complete(model, tmp_path_factory):
    """The complete folder of one worker."""
    folder = tmp_path_factory.mktemp("complete")
    assert sample_to_folder(Sampler(model), N, folder, **OPTIONS) == folder / "samples.npy"
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_contents_of_the_folder(model, complete):
    samples, labels = np.load(complete / "samples.npy"), np.load(complete / "labels.npy")
    assert samples.shape == (N, 4, 4, 1)
    assert samples.dtype == np.uint8
    assert labels.tolist() == [1, 2] * 11 + [1]
    expected = Sampler(model).sample(N, seed=5, label=torch.from_numpy(labels), steps=2)
    values = samples.transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(values - expected.numpy()).max() < 0.5 / 127.5 + 1e-5
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=complete, check=True)
    assert sorted(read_folder(complete)) == ["labels.npy", "request.json", "samples.npy"]


def test_points_keep_their_values(point_model, tmp_path):
    path = sample_to_folder(Sampler(point_model), 5, tmp_path, batch_size=3)
    expected = Sampler(point_model).sample(5)
    np.testing.assert_allclose(np.load(path), expected.numpy(), rtol=0, atol=1e-5)
    assert not (tmp_path / "labels.npy").exists()


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_write_the_same_bytes(model, complete, workers, tmp_path):
    for worker in range(workers):
        path = sample_to_folder(
            Sampler(model), N, tmp_path, worker=worker, workers=workers, **OPTIONS
        )
        assert (path is not None) == (worker == workers - 1)
    assert contents(tmp_path) == contents(complete)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("broken", ["flipped", "truncated", "missing"])
def test_broken_shards_are_drawn_again(model, complete, broken, tmp_path):
    sample_to_folder(Sampler(model), N, tmp_path, **OPTIONS)
    shard = tmp_path / "shards" / "00000002" / "samples.npy"
    data = bytearray(shard.read_bytes())
    if broken == "missing":
        shard.unlink()
    else:
        data[-1] ^= 1
        shard.write_bytes(data if broken == "flipped" else data[:-3])
    (tmp_path / "samples.npy").write_bytes(b"broken, too")
    assert sample_to_folder(Sampler(model), N, tmp_path, **OPTIONS) is not None
    assert contents(tmp_path) == contents(complete)


def test_complete_samples_are_not_drawn_again(model, complete, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("drawn again")

    sampler = Sampler(model)
    monkeypatch.setattr(sampler, "sample", fail)
    sample_to_folder(sampler, N, complete, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 6}, "seed"), ({"label": [2]}, "labels"), ({"steps": 1}, "steps")],
)
def test_another_request_is_refused(model, complete, change, name):
    before = contents(complete)
    with pytest.raises(CheckpointError, match=f"another request; its {name} is"):
        sample_to_folder(Sampler(model), N, complete, **{**OPTIONS, **change})
    assert contents(complete) == before


def test_another_model_is_refused(model, complete):
    other = CDRL.from_config(model.to_config())
    with pytest.raises(CheckpointError, match="its model is"):
        sample_to_folder(Sampler(other), N, complete, **OPTIONS)


def test_bad_arguments(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write samples"):
        sample_to_folder(Sampler(model), 2, tmp_path / "file")
    with pytest.raises(TypeError, match="got one of a combination"):
        sample_to_folder(Sampler(conditional(model, "a")), 2, tmp_path)
    with pytest.raises(ValueError, match="worker"):
        sample_to_folder(Sampler(model), 2, tmp_path, worker=2, workers=2)
    with pytest.raises(ValueError, match="list of classes"):
        sample_to_folder(Sampler(model), 2, tmp_path, label="a")


def test_a_full_disk_loses_nothing(model, complete, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        sample_to_folder(Sampler(model), N, tmp_path, **OPTIONS)
    monkeypatch.undo()
    assert 0 < len(list((tmp_path / "shards").iterdir())) < 6
    sample_to_folder(Sampler(model), N, tmp_path, **OPTIONS)
    assert contents(tmp_path) == contents(complete)


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_torchrun_with_a_worker_killed_and_started_again(model, tmp_path, workers):
    """Two workers of the command line, one killed, then one or three, write one worker's bytes."""
    model.save_pretrained(tmp_path / "model")
    command = ["-m", "cdrl_fast", "sample", "--model", tmp_path / "model", "--device", "cpu"]
    arguments = ["-n", 400, "--label", "a", "b", "--batch-size", 2, "--steps", 2, "--out"]

    def start(workers, out):
        return subprocess.Popen(
            torchrun(workers, *command, *arguments, tmp_path / out),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    run = start(2, "killed")
    shards = tmp_path / "killed" / "shards"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("0*"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert run.wait(60) != 0
    assert 20 <= len(list(shards.glob("0*"))) < 200
    options = {"label": ["a", "b"], "batch_size": 2, "steps": 2}
    if workers == 1:
        sample_to_folder(Sampler(model), 400, tmp_path / "killed", **options)
    else:
        assert start(workers, "killed").wait(120) == 0
    sample_to_folder(Sampler(model), 400, tmp_path / "uninterrupted", **options)
    files = contents(tmp_path / "killed")
    assert files == contents(tmp_path / "uninterrupted")
    assert json.loads(files["request.json"])["n"] == 400
