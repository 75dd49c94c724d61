"""Faults that a training run survives: NaN, full disks, corrupt checkpoints, signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, ChainDiverged, CheckpointError, TrainConfig, Trainer, TrainingDiverged
from cdrl_fast.data import Dataset
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.optim import MIN_HISTORY, Monitor

CONFIG = TrainConfig(
    batch_size=4, energy_lr=1e-3, initializer_lr=1e-3, warmup=0, checkpoint_every=2, log_every=1,
    keep=3, patience=2, rollbacks=2,
)  # fmt: skip


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    return Dataset("random", values, None, ())


@pytest.fixture
def trainer(image_model, images):
    return Trainer(without_labels(image_model), images, CONFIG)


def without_labels(model):
    """Return a model with the same networks, without labels."""
    config = model.to_config()
    for network in ("energy", "initializer"):
        config[network]["classes"] = 0
    torch.manual_seed(0)
    return CDRL.from_config(config)


def entries(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def poisoned(trainer, when):
    """Make a trainer's data NaN at iterations for which ``when`` is true; return the trainer."""
    at = trainer.batches.at

    def batch(iteration):
        x, label = at(iteration)
        return (x * float("nan") if when(iteration) else x), label

    trainer.batches.at = batch
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_bad_batch_is_skipped(trainer, tmp_path):
    poisoned(trainer, lambda i: i == 3).fit(5, folder=tmp_path)
    log = entries(tmp_path)
    (skipped,) = [x for x in log if "skipped" in x]
    assert (
        "iteration 3, step 1: the training chain became non-finite (NaN or Inf)"
        in skipped["skipped"]
    )
    assert (trainer.iteration, trainer.rollbacks) == (5, 0)
    assert torch.isfinite(weights(trainer.model)).all()


@pytest.mark.parametrize("broken", ["gradient", "energy"])
def test_bad_gradients_and_energies_are_skipped(trainer, tmp_path, broken):
    count = 0

    def hook(gradient):
        nonlocal count
        count += 1
        return gradient * (float("nan") if count == 3 else 1.0)

    if broken == "gradient":
        trainer.model.initializer.head.weight.register_hook(hook)
    else:
        trainer.model.energy.head.register_forward_hook(lambda m, i, out: hook(out))
    trainer.fit(4, folder=tmp_path)
    (skipped,) = [x["skipped"] for x in entries(tmp_path) if "skipped" in x]
    assert "initializer_grad_norm is nan" in skipped or "energy_" in skipped
    assert torch.isfinite(weights(trainer.model)).all()


def test_an_explosion_is_an_anomaly_once_the_usual_norm_is_known():
    monitor = Monitor()
    rng = np.random.default_rng(0)
    for norm in rng.lognormal(0.0, 1.0, MIN_HISTORY):
        assert monitor.anomaly({"energy_grad_norm": 1e6}) is None
        monitor.update({"energy_grad_norm": norm})
    assert monitor.anomaly({"energy_grad_norm": 30.0}) is None
    assert "energy_grad_norm is 1e+04, usually about" in monitor.anomaly({"energy_grad_norm": 1e4})
    assert "energy_loss is inf" in monitor.anomaly({"energy_loss": float("inf")})
    again = Monitor(json.loads(json.dumps(monitor.state)))
    assert again.state == monitor.state


def test_many_bad_iterations_go_back_with_smaller_steps_and_other_noise(trainer, tmp_path):
    before = trainer._first_sample
    poisoned(trainer, lambda i: 4 <= i < 7 and trainer.rollbacks == 0).fit(8, folder=tmp_path)
    log = entries(tmp_path)
    assert [x["iteration"] for x in log if "skipped" in x] == [4, 5, 6]
    (back,) = [x for x in log if "rolled_back" in x]
    assert (back["iteration"], back["learning_rates"]) == (6, 0.5)
    assert (trainer.iteration, trainer.rollbacks) == (8, 1)
    assert trainer.energy_optimizer.param_groups[0]["lr"] == 0.5e-3
    assert trainer._first_sample >= before + 2**48
    resumed = Trainer.resume(tmp_path, trainer.data)
    assert resumed.rollbacks == 1
    assert resumed._monitor.state == trainer._monitor.state


def test_training_stops_if_going_back_does_not_help(trainer, tmp_path):
    with pytest.raises(TrainingDiverged, match="3 iterations in a row .* went back .* 2 times"):
        poisoned(trainer, lambda i: i >= 3).fit(20, folder=tmp_path)
    assert torch.isfinite(weights(trainer.model)).all()


def test_without_a_folder_there_is_nowhere_to_go_back_to(trainer):
    with pytest.raises(TrainingDiverged, match="no checkpoint to go back to"):
        poisoned(trainer, lambda i: True).fit(20)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_resume_falls_back_to_the_checkpoint_before(trainer, tmp_path, damage):
    trainer.fit(6, folder=tmp_path)
    newest = checkpoints_of(tmp_path)[-1] / "training.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "missing":
        newest.unlink()
    else:
        data[len(data) // 2] ^= 4
        newest.write_bytes(data[:-10] if damage == "truncated" else data)
    with pytest.warns(UserWarning, match="loading the checkpoint before it instead"):
        resumed = Trainer.resume(tmp_path, trainer.data)
    assert resumed.iteration == 4
    resumed.fit(6, folder=tmp_path)
    assert torch.equal(weights(resumed.model), weights(trainer.model))
    for folder in checkpoints_of(tmp_path):
        (folder / "config.json").unlink()
    with (
        pytest.warns(UserWarning, match="loading the checkpoint before it instead"),
        pytest.raises(CheckpointError, match="file is missing"),
    ):
        Trainer.resume(tmp_path, trainer.data)


def test_an_unfinished_checkpoint_is_cleared_away(trainer, tmp_path):
    trainer.fit(2, folder=tmp_path)
    unfinished = tmp_path / "checkpoints" / ".00000004.abcd"
    unfinished.mkdir()
    (unfinished / "training.safetensors").write_bytes(b"half")
    Trainer.resume(tmp_path, trainer.data).fit(3, folder=tmp_path)
    assert not unfinished.exists()


def test_a_failed_checkpoint_is_tried_again(trainer, tmp_path, monkeypatch):
    save, failures = trainer.save, 2

    def full(path):
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(28, "No space left on device")
        return save(path)

    monkeypatch.setattr(trainer, "save", full)
    trainer.fit(5, folder=tmp_path)
    # Due at 2; tried again at 3 and 4.
    assert [int(f.name) for f in checkpoints_of(tmp_path)] == [4, 5]
    failures = 100
    with pytest.raises(CheckpointError, match="last checkpoint could not be written: .*No space"):
        trainer.fit(7, folder=tmp_path)
    assert [int(f.name) for f in checkpoints_of(tmp_path)] == [4, 5]


def test_a_full_disk_is_an_error_before_anything_is_trained(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match=r"a checkpoint takes \d+ MB, 0 MB are free"):
        trainer.fit(2, folder=tmp_path)
    assert trainer.iteration == 0


def test_a_folder_that_cannot_be_written_to(trainer, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot write a training run here"):
        trainer.fit(2, folder=tmp_path / "run")


def test_files_beyond_the_limit(trainer, tmp_path):
    """The system refuses the write, as on a full disk; earlier checkpoints stay complete."""
    trainer.fit(2, folder=tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="last checkpoint could not be written"):
            trainer.fit(4, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Trainer.resume(tmp_path, trainer.data).iteration == 2


def test_checkpoints_by_the_clock(trainer, tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 61 * trainer.iteration)
    trainer.config = replace(CONFIG, checkpoint_every=0, checkpoint_minutes=2, keep=9)
    trainer.fit(6, folder=tmp_path)
    assert [int(f.name) for f in checkpoints_of(tmp_path)] == [2, 4, 6]


def test_another_runs_folder_is_left_alone(trainer, image_model, images, tmp_path):
    trainer.fit(4, folder=tmp_path)
    log, checkpoints = (tmp_path / "log.jsonl").read_bytes(), checkpoints_of(tmp_path)
    fresh = Trainer(without_labels(image_model), images, CONFIG)
    with pytest.raises(CheckpointError, match="a run that is at iteration 4, this one is at 0"):
        fresh.fit(2, folder=tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert checkpoints_of(tmp_path) == checkpoints


def test_files_that_others_leave_among_the_checkpoints(trainer, tmp_path):
    trainer.fit(2, folder=tmp_path)
    (tmp_path / "checkpoints" / ".DS_Store").write_text("")
    (tmp_path / "checkpoints" / "00000002.bak").mkdir()
    resumed = Trainer.resume(tmp_path, trainer.data)
    resumed.fit(3, folder=tmp_path)
    assert [int(f.name) for f in checkpoints_of(tmp_path)] == [2, 3]


def test_one_good_checkpoint_before_a_broken_one_is_kept(trainer, tmp_path):
    config = replace(CONFIG, keep=2, checkpoint_every=2)
    trainer.config = config
    trainer.fit(4, folder=tmp_path)
    (checkpoints_of(tmp_path)[-1] / "config.json").unlink()
    with pytest.warns(UserWarning, match="loading the checkpoint before it instead"):
        resumed = Trainer.resume(tmp_path, trainer.data, config=replace(config, keep=1))
    resumed.fit(3, folder=tmp_path)
    assert Trainer.resume(tmp_path / "checkpoints" / "00000003", trainer.data).iteration == 3


def test_a_roll_back_leaves_its_checkpoint_as_it_is(trainer, tmp_path, monkeypatch):
    saved, save = [], trainer.save
    monkeypatch.setattr(trainer, "save", lambda path: (saved.append(path.name), save(path)))
    poisoned(trainer, lambda i: 4 <= i < 7 and trainer.rollbacks == 0).fit(8, folder=tmp_path)
    assert trainer.rollbacks == 1
    assert len(saved) == len(set(saved))


@pytest.mark.parametrize("part", ["preview", "evaluate"])
def test_a_preview_that_fails_does_not_stop_training(trainer, tmp_path, part, caplog):
    def fails(*arguments):
        raise ChainDiverged("level 3 became non-finite", level=3, step=1, sample=0)

    trainer.config = replace(CONFIG, preview_every=2, metrics_every=2)
    trainer.fit(4, folder=tmp_path, **{part: fails})
    assert trainer.iteration == 4
    assert "level 3 became non-finite" in caplog.text


def test_the_log_has_no_losses_of_a_skipped_iteration(trainer, tmp_path):
    last = poisoned(trainer, lambda i: i == 3).fit(4, folder=tmp_path)
    iterations = [x["iteration"] for x in entries(tmp_path) if "energy_loss" in x]
    assert iterations == [1, 2, 3]
    assert last["energy_loss"] == entries(tmp_path)[2]["energy_loss"]


def test_sigterm_writes_a_checkpoint(tmp_path):
    """Slurm and Kubernetes send it before they stop a job."""
    program = f"""
        from cdrl_fast.cli.main import main
        import sys
        sys.exit(main([
            "train", "--out", {str(tmp_path)!r}, "--iterations", "100000", "--batch-size", "2",
            "--energy-width", "4", "--energy-multipliers", "1", "--energy-blocks", "1",
            "--initializer-width", "4", "--initializer-multipliers", "1", "--attention",
            "--preview-every", "0", "--checkpoint-every", "0", "--log-every", "1",
        ]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    (folder,) = checkpoints_of(tmp_path)
    assert int(folder.name) == entries(tmp_path)[-1]["iteration"]


@pytest.mark.parametrize("name", ["patience", "rollbacks", "checkpoint_minutes"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: .* greater than or equal to 0, got -1"):
        TrainConfig(**{name: -1})
