"""Folders with checksums: atomic writes, detection of every flipped byte."""

import json
import os
import random
import subprocess

import pytest
import torch

from cdrl_fast import CDRL, CheckpointError, MLPEnergy, MLPInitializer, NoiseSchedule
from cdrl_fast.storage.folder import json_to_bytes, read_folder, write_atomic, write_folder


@pytest.fixture
def saved(point_model, tmp_path):
    return point_model.save_pretrained(tmp_path / "model")


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_round_trip(image_model, point_model, tmp_path):
    for model in (image_model, point_model):
        loaded = CDRL.from_pretrained(model.save_pretrained(tmp_path / str(model.sample_shape)))
        assert same(loaded, model)
        assert loaded.to_config() == model.to_config()
        assert loaded.classes == model.classes
        assert loaded.schedule == model.schedule
        assert not loaded.training


def test_round_trip_of_drl_and_of_float64(tmp_path):
    model = CDRL(MLPEnergy(2, 8, (1,)), None, NoiseSchedule(levels=3))
    loaded = CDRL.from_pretrained(model.save_pretrained(tmp_path / "drl"))
    assert loaded.initializer is None
    assert same(loaded, model)


def test_every_flipped_byte_is_detected(saved):
    files = sorted(f for f in saved.iterdir() if f.name != "README.md")
    assert [f.name for f in files] == ["SHA256SUMS", "config.json", "model.safetensors"]
    rng = random.Random(0)
    for trial in range(200):
        file = files[trial % 3]
        original = file.read_bytes()
        position = rng.randrange(len(original))
        value = rng.choice([v for v in range(256) if v != original[position]])
        file.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
        with pytest.raises(CheckpointError):
            CDRL.from_pretrained(saved)
        file.write_bytes(original)
    CDRL.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_and_missing_files_are_named(saved, keep):
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match="model.safetensors: corrupt"):
        CDRL.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(CheckpointError, match="a listed file is missing.*model.safetensors"):
        CDRL.from_pretrained(saved)


def test_sha256sum_accepts_the_list(saved):
    process = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=saved, capture_output=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_changes_no_existing_file(saved, monkeypatch, existing, failing, tmp_path):
    folder = saved if existing else tmp_path / "new"
    before = {f.name: f.read_bytes() for f in saved.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, {"config.json": b"{}", "model.safetensors": b"x"})
    monkeypatch.undo()
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model"]


def test_saving_again_replaces_and_keeps_other_files(saved, point_model):
    (saved / "README.md").write_text("a model card")
    with torch.no_grad():
        point_model.energy.head.weight += 1
    point_model.save_pretrained(saved)
    assert same(CDRL.from_pretrained(saved), point_model)
    assert (saved / "README.md").read_text() == "a model card"


def test_the_list_cannot_name_files_elsewhere(saved, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    sums = saved / "SHA256SUMS"
    sums.write_text(sums.read_text() + "0" * 64 + "  ../secret\n")
    with pytest.raises(CheckpointError, match="corrupt"):
        read_folder(saved)


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    files = {
        "config.json": json_to_bytes(config),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
    }
    write_folder(folder, files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(library="other"), "not a cdrl_fast model of format 1"),
        (lambda c: c.update(format=2), "not a cdrl_fast model of format 1"),
        (lambda c: c["energy"].update(type="Other"), "Other is not a network of this library"),
        (lambda c: c["energy"].update(width=24), "the weights do not fit config.json"),
    ],
)
def test_configurations_that_do_not_fit(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        CDRL.from_pretrained(saved)


def test_unknown_names(tmp_path):
    for name in ("digit", tmp_path / "nothing", "./a/b"):
        with pytest.raises(
            CheckpointError, match=r"no such model; expected a shipped name \(.*digi"
        ):
            CDRL.from_pretrained(name)
    with pytest.raises(CheckpointError, match="no saved model or checkpoint here"):
        CDRL.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="expected a folder to write to, got a file"):
        write_folder(tmp_path / "file", {"config.json": b"{}"})


def test_a_shipped_name_precedes_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.warns(UserWarning, match=r"loading the shipped model; .* use \./digits"):
        assert CDRL.from_pretrained("digits").num_classes == 10


def test_a_model_is_not_saved_into_a_training_run(point_model, tmp_path):
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="without checkpoints, got a training run"):
        point_model.save_pretrained(tmp_path)


def test_a_write_creates_the_folder(tmp_path):
    write_atomic(tmp_path / "a" / "b.json", b"{}")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"{}"


def test_hub_ids(saved, monkeypatch):
    """Check that a Hub id is downloaded by huggingface_hub and then verified as a folder."""
    import sys
    import types

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, allow_patterns: str(saved)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert CDRL.from_pretrained("someone/points").sample_shape == (2,)

    def offline(name, allow_patterns):
        raise ConnectionError("offline")

    hub.snapshot_download = offline
    with pytest.raises(CheckpointError, match="someone/points: .*the Hub failed: offline"):
        CDRL.from_pretrained("someone/points")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'cdrl-fast\[hub\]'"):
        CDRL.from_pretrained("someone/points")


def test_networks_must_agree():
    with pytest.raises(ValueError, match="the networks must have the same classes, got 3 .* 0"):
        CDRL(MLPEnergy(2, 8, (1,), classes=3), MLPInitializer(2, 64, 8), NoiseSchedule())
    with pytest.raises(ValueError, match="pass sample_shape"):
        CDRL(torch.nn.Identity(), None, NoiseSchedule())
