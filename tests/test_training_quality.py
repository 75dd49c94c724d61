"""The comparison of trainings, in short; the reference's loop is the trainer's."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import training_quality as script
from cdrl_fast.recipe import load_recipe

from cdrl_fast import Trainer, reference
from cdrl_fast.data import load_data

SMALL = {
    "energy_width": 8, "energy_multipliers": [1, 2], "energy_blocks": 1, "initializer_width": 8,
    "initializer_multipliers": [1], "initializer_blocks": 1, "attention": [], "dropout": 0.0,
}  # fmt: skip
TRAINING = {"batch_size": 4, "energy_lr": 1e-3, "initializer_lr": 1e-3, "warmup": 3}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"data": "digits", "model": SMALL, "training": TRAINING}))
    return path


def test_the_references_loop_is_the_trainers(recipe, monkeypatch):
    """The same weights and average, given the same noise."""
    made, data = load_recipe(recipe), load_data("digits")
    config = replace(made.training, label_drop=0.0)
    model = made.model.build(data).double()
    twin = copy.deepcopy(model)
    iteration = reference.training_iteration
    slow = script.ByReference(twin, data, config)

    def streamed(model, x0, label, **options):
        options |= {"noise": "stream", "iteration": slow.iteration}
        return iteration(model, x0.double(), label, **options)

    monkeypatch.setattr(reference, "training_iteration", streamed)
    fast = Trainer(model, data, config)
    for _ in range(4):
        fast.step()
        slow.step()
    for mine, theirs in ((fast.model, slow.model), (fast.ema, slow.ema)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], value, rtol=0, atol=1e-9)


def test_it_reports_and_judges(recipe, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    options = ["--recipe", str(recipe), "--iterations", "2", "--every", "1", "--seeds", "2"]
    status = script.main([*options, "--samples", "20", "--out", str(out)])
    report = json.loads(out.read_text())
    assert status == int(not report["passed"])
    assert out.with_suffix(".png").exists()
    for name in ("reference", "cdrl_fast"):
        for run, last in zip(report["runs"], report["frechet"][name], strict=True):
            assert [row["iteration"] for row in run[name]] == [1, 2]
            assert run[name][0]["seconds"] < run[name][1]["seconds"]
            assert last == run[name][1]["frechet"] > 0


@pytest.mark.parametrize(("ours", "passed"), [((5.1, 5.0), True), ((9.0, 9.1), False)])
def test_a_difference_beyond_its_interval_fails(ours, passed):
    found = [
        {"reference": [{"frechet": r}], "cdrl_fast": [{"frechet": f}]}
        for r, f in zip((5.0, 5.1), ours, strict=True)
    ]
    report = script.compared(found, floor=2.0)
    assert report["passed"] is passed
    low, high = report["interval"]
    assert low <= report["difference"] <= high
