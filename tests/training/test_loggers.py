"""Loggers: the contents of TensorBoard and Weights & Biases; their errors do not stop a run."""

import json
import logging
import sys
import types

import numpy as np
import pytest
from PIL import Image

from cdrl_fast import Trainer
from cdrl_fast.data import Dataset
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.loggers import gpu_stats


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    return Dataset("random", values, np.arange(20) % 3 + 1, ("zero", "one", "two"))


@pytest.fixture
def fit(image_model, images, tmp_path):
    def run(iterations=4, **options):
        config = TrainConfig(
            batch_size=2, log_every=1, preview_every=2, metrics_every=4, checkpoint_every=2,
            warmup=2, patience=9, **options,
        )  # fmt: skip
        if (tmp_path / "checkpoints").exists():
            trainer = Trainer.resume(tmp_path, images, config=config)
        else:
            trainer = Trainer(image_model, images, config)
        at = trainer.batches.at

        def batch(iteration):
            x0, label = at(iteration)
            return (x0 * float("nan") if iteration == 2 else x0), label

        def preview(trainer, path):
            Image.new("L", (6, 5), 200).save(path.with_suffix(".png"))

        trainer.batches.at = batch
        trainer.fit(
            iterations, folder=tmp_path, preview=preview, evaluate=lambda t: {"frechet": 1.5}
        )
        return tmp_path

    return run


def read_events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_shows_the_log(fit):
    folder = fit(watch="tensorboard")
    events, lines = read_events(folder), (folder / "log.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if "energy_gap" in line]
    for name in ("energy_gap", "initializer_loss", "energy_grad_norm", "samples_per_second"):
        shown = {e.step: e.value for e in events.Scalars(name)}
        expected = {line["iteration"]: line[name] for line in logged if name in line}
        assert expected
        assert shown == pytest.approx(expected, rel=1e-6)
    assert [(e.step, e.value) for e in events.Scalars("frechet")] == [(4, 1.5)]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(2, 6, 5), (4, 6, 5)]
    (skipped,) = events.Tensors("skipped/text_summary")
    assert b"iteration 2" in skipped.tensor_proto.string_val[0]


def test_a_resumed_run_continues_the_same_curves(fit):
    fit(watch="tensorboard")
    folder = fit(6, watch="tensorboard")
    assert [e.step for e in read_events(folder).Scalars("energy_gap")] == [1, 2, 4, 5, 6]


def test_an_error_of_a_logger_does_not_stop_training(fit, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        folder = fit(watch="tensorboard")
    assert [r.message for r in caplog.records].count(
        "TensorBoardLogger stopped, training goes on: OSError: [Errno 28] No space left on device"
    ) == 1
    assert (folder / "checkpoints" / "00000004").exists()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_an_error_before_training(fit, kind, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ImportError, match=rf'pip install "cdrl-fast\[{kind}\]"'):
        fit(watch=kind)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_weights_and_biases(fit, monkeypatch):
    """With a stand-in for the functions that are called."""
    shown, started = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: shown.append((step, values)),
        alert=lambda title, text: shown.append((title, text)),
        finish=lambda: shown.append(("end", {})),
    )
    module = types.SimpleNamespace(
        init=lambda **options: started.append(options) or run,
        Image=lambda path: path,
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    folder = fit(watch="wandb")
    fit(5, watch="wandb")
    assert [options["id"] for options in started] == [(folder / "wandb-run").read_text()] * 2
    assert started[0]["resume"] == "allow"
    assert [step for step, values in shown if "energy_gap" in values] == [1, 2, 4, 5]
    assert (4, {"samples": str(folder / "previews" / "00000004.png")}) in shown
    assert [step for step, _ in shown].count("end") == 2
    assert any(title == "skipped" and text.startswith("iteration 2") for title, text in shown)


def test_the_real_weights_and_biases(fit, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = fit(watch="wandb")
    fit(5, watch="wandb")
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert {run.name.rpartition("-")[2] for run in runs} == {(folder / "wandb-run").read_text()}
    assert len(list(runs[0].glob("files/media/images/samples_*.png"))) == 2
    assert [len(list(run.glob("*.wandb"))) for run in runs] == [1, 1]


def test_a_gpu_that_does_not_report_its_power(monkeypatch):
    class NVMLError(Exception):
        """An error that is no RuntimeError, as in nvidia-ml-py."""

    def power_draw():
        raise NVMLError("Not Supported")

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 3e9)
    monkeypatch.setattr("torch.cuda.power_draw", power_draw)
    assert gpu_stats() == {"gpu_memory_gb": 3.0}


def test_unknown_loggers_are_refused():
    with pytest.raises(ValueError, match="watch: Input should be"):
        TrainConfig(watch="television")
