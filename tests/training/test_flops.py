"""The roofline of training: FLOP counted by hand, and the share of it in a run's log."""

import json
import shutil
from itertools import cycle, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cdrl_fast import CDRL, MLPEnergy, NoiseSchedule, TrainConfig, Trainer
from cdrl_fast.data import load_data
from cdrl_fast.precision import Precision
from cdrl_fast.report.training import read_log
from cdrl_fast.training import flops
from cdrl_fast.training.flops import matmul_rate, roofline_seconds, training_flop
from cdrl_fast.training.run_folder import RunFolder


class Map(nn.Module):
    """A chain of linear maps of points, to a number or to points."""

    def __init__(self, *sizes):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, y, logsnr, label=None):
        for linear in self.maps:
            y = linear(y)
        return y[:, 0] if y.shape[1] == 1 else y


@pytest.mark.parametrize("initializer", [None, Map(2, 5, 2)])
def test_flop_by_hand(initializer):
    model = CDRL(Map(2, 8, 1), initializer, NoiseSchedule(steps=4), sample_shape=(2,))
    energy, proposal = 2 * (2 * 8 + 8 * 1), 2 * (2 * 5 + 5 * 2)
    expected = 4 * 2 * energy + 2 * 3 * energy + (3 * proposal if initializer else 0)
    assert training_flop(model) == expected


def test_the_papers_network_has_its_flop():
    """An iteration of 256 images takes 105 TFLOP."""
    from cdrl_fast.training.recipe import load_recipe
    from tests.training.test_recipe import stand_in

    recipe = load_recipe("cifar10")
    model = recipe.model.build(stand_in(recipe.data))
    assert 256 * training_flop(model) == pytest.approx(105e12, rel=0.05)


@pytest.fixture
def ticks(monkeypatch):
    """A clock on which matmuls take 3, 2 and 5 seconds; yields their shapes and dtypes."""
    now, calls = [0.0], []
    matmul, seconds = torch.Tensor.__matmul__, cycle((3.0, 2.0, 5.0))

    def timed(a, b):
        now[0] += next(seconds)
        calls.append((tuple(a.shape), tuple(b.shape), a.dtype))
        return matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    matmul_rate.cache_clear()
    yield calls
    matmul_rate.cache_clear()


def test_the_rate_is_that_of_the_fastest_matmul(ticks):
    rate = matmul_rate(torch.device("cpu"), torch.float32, "ieee")
    assert set(ticks) == {((768, 768), (768, 768), torch.float32)}
    assert rate == 2 * 768**3 / 2.0
    model = CDRL(Map(2, 8, 1), None, NoiseSchedule(), sample_shape=(2,))
    assert roofline_seconds(model, Precision("fp32")) == training_flop(model) / rate


def test_a_run_logs_its_share(tmp_path):
    schedule = NoiseSchedule(steps=2, kappa=1e-3, step_scale="constant")
    model = CDRL(MLPEnergy(width=16, multipliers=(1,)), None, schedule)
    trainer = Trainer(model, load_data("checkerboard"), TrainConfig(batch_size=64, log_every=1))
    trainer.fit(3, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    roofline = roofline_seconds(model, trainer.precision)
    for line in lines[1:]:
        share = line["samples_per_second"] * roofline
        assert line["share_of_roofline"] == pytest.approx(share, abs=1e-4)
        assert share < 1


def test_logs_of_version_0_1_are_read_and_continued(tmp_path):
    """There ``share_of_roofline`` had another name."""
    log = tmp_path / "log.jsonl"
    shutil.copy(Path(__file__).with_name("log_0.1.jsonl"), log)
    before = read_log(log)
    assert [row["iteration"] for row in before] == [1, 2, 3]
    assert [row.get("share_of_roofline") for row in before] == [None, 0.0049, 0.0046]
    run = RunFolder(tmp_path, TrainConfig(batch_size=10), iteration=2, roofline=0.01)
    run.log_losses(3, 1.0, {"energy_loss": 0.25})
    run.log_losses(4, 2.0, {"energy_loss": 0.25})
    rows = read_log(log)
    assert rows[:2] == before[:2]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["share_of_roofline"] == 0.1
