"""Quality against one argument of sampling, as a user asks for it."""

import json

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, NoiseSchedule, Sampler, StepPlan
from cdrl_fast.cli import main
from cdrl_fast.cli.options import one_plan
from cdrl_fast.data import load_data
from cdrl_fast.evaluation.judge import Judge, measure
from cdrl_fast.evaluation.sweep import network_evaluations, sweep, sweep_figure, sweep_table


@pytest.fixture(scope="module")
def points():
    return load_data("checkerboard").subset(range(300))


class Counting(torch.nn.Module):
    """A network that counts the samples it is asked about, over all its copies."""

    asked = 0
    classes = 2

    def forward(self, x, logsnr, label=None):
        Counting.asked += len(x)
        return self.value(x)


class Energy(Counting):
    def value(self, x):
        return -(x**2).flatten(1).sum(1)


class Proposal(Counting):
    def value(self, x):
        return x


@pytest.mark.parametrize("proposal", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize(("shape", "denoised"), [((1, 2, 2), 1), ((2,), 0)])
def test_network_evaluations_are_those_that_happen(
    proposal, guidance, shape, denoised, monkeypatch
):
    initializer = Proposal() if proposal else None
    schedule = NoiseSchedule(levels=3, steps=2)
    model = CDRL(Energy(), initializer, schedule, sample_shape=shape)
    steps = StepPlan((1, 2, 4), (1.0, 1.0, 1.0))
    monkeypatch.setattr(Counting, "asked", 0)
    Sampler(model).sample(5, label=1, steps=steps, guidance=guidance)
    assert Counting.asked == 5 * network_evaluations(model, steps, guidance)
    once = 7 + denoised + (3 if proposal else 0)
    assert network_evaluations(model, steps, guidance) == once * (2 if guidance else 1)


def test_rows_are_means_over_seeds(point_model, points):
    point_model.step_plan = StepPlan((1, 2, 1, 1, 1, 1), (1.0,) * 6)
    rows = sweep(point_model, points, "steps", [2, "tuned"], samples=50, seeds=(3, 4))
    assert [row["steps"] for row in rows] == [2, "tuned"]
    assert [row["evaluations"] for row in rows] == [6 + 12, 6 + 7]
    assert rows[1]["plan"] == {"counts": [1, 2, 1, 1, 1, 1], "multipliers": [1.0] * 6}
    sampler, judge = Sampler(point_model), Judge(points)
    for row in rows:
        found = [
            measure(sampler, judge, 50, steps=row["steps"], seed=s)["sliced_wasserstein"]
            for s in (3, 4)
        ]
        assert row["sliced_wasserstein"] == pytest.approx(np.mean(found))
        assert row["sliced_wasserstein_spread"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)
    assert rows[0]["sliced_wasserstein"] != rows[1]["sliced_wasserstein"]
    text = sweep_table(rows)
    assert f"{rows[1]['sliced_wasserstein']:.4g} ± " in text
    assert "tuned" in text.splitlines()[2]
    panels = sweep_figure(rows).axes
    assert [panel.get_ylabel() for panel in panels] == [
        "sliced Wasserstein distance",
        "inside the squares",
    ]
    drawn = panels[0].containers
    assert [container.get_label() for container in drawn] == ["h² = K/K'", "tuned"]
    assert list(drawn[1][0].get_xdata()) == [13]
    assert list(drawn[1][0].get_ydata()) == [rows[1]["sliced_wasserstein"]]


def test_nothing_is_drawn_where_a_value_is_wrong(point_model, points, monkeypatch):
    def drawn(*arguments, **options):
        raise AssertionError("drawn")

    monkeypatch.setattr(Sampler, "sample", drawn)
    with pytest.raises(ValueError, match="needs a model with a tuned plan"):
        sweep(point_model, points, "steps", [2, "tuned"])
    with pytest.raises(ValueError, match="one or more values"):
        sweep(point_model, points, "steps", [])


def test_sweeps_on_the_command_line(tmp_path, capsys):
    out, picture = tmp_path / "steps.json", tmp_path / "curve.svg"
    options = ["--samples", "20", "--seeds", "2", "--out", str(out)]
    assert main(["evaluate", "--steps", "2,1/1/1/1/1/2", *options]) == 0
    found = json.loads(out.read_text())
    assert found["command"] == (
        f"cdrl-fast evaluate --samples 20 --steps 2,1/1/1/1/1/2 --seeds 2 --out {out}"
    )
    assert found["seeds"] == [0, 1]
    assert [row["evaluations"] for row in found["rows"]] == [19, 14]
    assert found["rows"][1]["plan"]["counts"] == [1, 1, 1, 1, 1, 2]
    assert found["rows"][1]["plan"]["multipliers"][5] == pytest.approx(7.5**0.5)
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "1/1/1/1/1/2" in capsys.readouterr().out
    options = ["--steps", "1", "--samples", "20", "--out", str(out), "--picture", str(picture)]
    assert main(["evaluate", "--guidance", "0,2", *options]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["guidance"] for row in rows] == [0, 2]
    assert [row["evaluations"] for row in rows] == [13, 26]
    assert all({"accuracy", "frechet"} <= row.keys() for row in rows)
    assert "<svg" in picture.read_text()


def test_without_matplotlib_the_figures_are_still_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    out = tmp_path / "steps.json"
    words = ["evaluate", "--steps", "1,2", "--samples", "10", "--out", str(out)]
    assert main(words) == 0
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert "no picture: figures need matplotlib" in capsys.readouterr().err
    assert not out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ((), None),
        (("3",), 3),
        (("1", "2"), (1, 2)),
        (("1/2",), (1, 2)),
        (("tuned",), "tuned"),
    ],
)
def test_plans_in_words(words, steps):
    assert one_plan(words) == steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "1,2", "--guidance", "0,1"], "not over both at once"),
        (["--steps", "1,2", "--guidance", "0", "1"], "takes one value of the other option, got 2"),
        (["--steps", "1,few"], "or tuned, got 'few'"),
        (["--guidance", "0,lots"], "guidance: expected numbers, got '0,lots'"),
        (["--seeds", "2"], "belong to a sweep"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
