"""Sweeps of quality over one argument of sampling, in Python and on the command line."""

import json
import shlex
import sys

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, NoiseSchedule, Sampler, StepPlan
from cdrl_fast.cli.main import main
from cdrl_fast.cli.options import parse_steps
from cdrl_fast.data import load_data
from cdrl_fast.evaluation.judge import Judge, measure
from cdrl_fast.evaluation.sweep import network_evaluations, sweep, sweep_figure, sweep_table


@pytest.fixture(scope="module")
def points():
    return load_data("checkerboard").subset(range(300))


class Counting(torch.nn.Module):
    """A network that counts the samples it evaluates, over all its copies."""

    evaluations = 0
    classes = 2

    def forward(self, x, logsnr, label=None):
        Counting.evaluations += len(x)
        return self.output(x)


class Energy(Counting):
    def output(self, x):
        return -(x**2).flatten(1).sum(1)


class Proposal(Counting):
    def output(self, x):
        return x


@pytest.mark.parametrize("proposal", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize(("shape", "denoised"), [((1, 2, 2), 1), ((2,), 0)])
def test_network_evaluations_are_those_of_the_sampler(
    proposal, guidance, shape, denoised, monkeypatch
):
    initializer = Proposal() if proposal else None
    schedule = NoiseSchedule(levels=3, steps=2)
    model = CDRL(Energy(), initializer, schedule, sample_shape=shape)
    steps = StepPlan((1, 2, 4), (1.0, 1.0, 1.0))
    monkeypatch.setattr(Counting, "evaluations", 0)
    Sampler(model).sample(5, label=1, steps=steps, guidance=guidance)
    assert Counting.evaluations == 5 * network_evaluations(model, steps, guidance)
    unguided = 7 + denoised + (3 if proposal else 0)
    assert network_evaluations(model, steps, guidance) == unguided * (2 if guidance else 1)


def test_rows_are_means_over_seeds(point_model, points):
    point_model.step_plan = StepPlan((1, 2, 1, 1, 1, 1), (1.0,) * 6)
    rows = sweep(point_model, points, "steps", [2, "tuned"], samples=50, seeds=(3, 4))
    assert [row["steps"] for row in rows] == [2, "tuned"]
    assert [row["evaluations"] for row in rows] == [6 + 12, 6 + 7]
    assert rows[1]["plan"] == {"counts": [1, 2, 1, 1, 1, 1], "multipliers": [1.0] * 6}
    sampler, judge = Sampler(point_model), Judge(points)
    for row in rows:
        distances = [
            measure(sampler, judge, 50, steps=row["steps"], seed=s)["sliced_wasserstein"]
            for s in (3, 4)
        ]
        spread = abs(distances[0] - distances[1]) / 2**0.5
        assert row["sliced_wasserstein"] == pytest.approx(np.mean(distances))
        assert row["sliced_wasserstein_spread"] == pytest.approx(spread)
    assert rows[0]["sliced_wasserstein"] != rows[1]["sliced_wasserstein"]
    text = sweep_table(rows)
    assert f"{rows[1]['sliced_wasserstein']:.4g} ± " in text
    assert "tuned" in text.splitlines()[2]
    panels = sweep_figure(rows).axes
    assert [panel.get_ylabel() for panel in panels] == [
        "sliced Wasserstein distance",
        "inside the squares",
    ]
    curves = panels[0].containers
    assert [curve.get_label() for curve in curves] == ["h² = K/K'", "tuned"]
    assert list(curves[1][0].get_xdata()) == [13]
    assert list(curves[1][0].get_ydata()) == [rows[1]["sliced_wasserstein"]]


def test_wrong_values_are_refused_before_sampling(point_model, points, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a sample was drawn")

    monkeypatch.setattr(Sampler, "sample", fail)
    with pytest.raises(ValueError, match="needs a model with a tuned step plan"):
        sweep(point_model, points, "steps", [2, "tuned"])
    with pytest.raises(ValueError, match="values, seeds: expected one or more of each, got 0"):
        sweep(point_model, points, "steps", [])


def test_sweeps_on_the_command_line(tmp_path, capsys, monkeypatch):
    out, picture = tmp_path / "steps.json", tmp_path / "curve.svg"
    command = f"cdrl-fast evaluate --samples 20 --steps 2,1/1/1/1/1/2 --seeds 2 --out {out}"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cdrl-fast", *shlex.split(command)[1:]])
    assert main() == 0
    content = json.loads(out.read_text())
    assert content["command"] == command
    assert content["seeds"] == [0, 1]
    assert [row["evaluations"] for row in content["rows"]] == [19, 14]
    assert content["rows"][1]["plan"]["counts"] == [1, 1, 1, 1, 1, 2]
    assert content["rows"][1]["plan"]["multipliers"][5] == pytest.approx(7.5**0.5)
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "1/1/1/1/1/2" in capsys.readouterr().out
    options = ["--steps", "1", "--samples", "20", "--out", str(out), "--picture", str(picture)]
    assert main(["evaluate", "--guidance", "0,2", *options]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["guidance"] for row in rows] == [0, 2]
    assert [row["evaluations"] for row in rows] == [13, 26]
    assert all({"accuracy", "frechet"} <= row.keys() for row in rows)
    assert "<svg" in picture.read_text()


def test_figures_are_written_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "steps.json"
    assert main(["evaluate", "--steps", "1,2", "--samples", "10", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "no picture: figures need matplotlib" in capsys.readouterr().err
    assert not out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ((), None),
        (("3",), 3),
        (("1", "2"), (1, 2)),
        (("1/2",), (1, 2)),
        (("tuned",), "tuned"),
    ],
)
def test_steps_on_the_command_line(options, steps):
    assert parse_steps(options) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1,2", "--guidance", "0,1"], "not over both at once"),
        (["--steps", "1,2", "--guidance", "0", "1"], "takes one value of the other option, got 2"),
        (["--steps", "1,few"], "or tuned, got 'few'"),
        (["--guidance", "0,lots"], "guidance: expected numbers, got '0,lots'"),
        (["--seeds", "2"], "seeds, picture: expected a sweep"),
    ],
)
def test_wrong_options(options, message, capsys):
    assert main(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err
