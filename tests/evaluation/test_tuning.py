"""Step plans tuned to a model: the search, and the plan in the model's files."""

import json
import math

import pytest
import torch

from cdrl_fast import CDRL, ChainDiverged, NoiseSchedule, Sampler, StepPlan, reference, tune_steps
from cdrl_fast.cli.main import main
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.errors import DataError
from cdrl_fast.evaluation import tuning
from cdrl_fast.evaluation.judge import Judge
from cdrl_fast.evaluation.tuning import _Search

PLAN = StepPlan((2, 1, 3, 1, 1, 2), (1.5, 1.0, 0.5, 1.25, 1.0, 2.0))
START = StepPlan((2, 2, 2), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def points():
    return load_data("checkerboard").subset(range(300))


def search(distance, deadline=math.inf, start=START):
    return _Search(start, distance, deadline, lambda distances: None)


def test_a_plan_is_saved_with_the_model(image_model, tmp_path):
    image_model.step_plan = PLAN
    image_model.save_pretrained(tmp_path / "tuned")
    loaded = CDRL.from_pretrained(tmp_path / "tuned")
    assert loaded.step_plan == PLAN
    tuned = Sampler(loaded).sample(2, label=1, steps="tuned")
    assert torch.equal(tuned, Sampler(image_model).sample(2, label=1, steps=PLAN))
    assert not torch.equal(tuned, Sampler(image_model).sample(2, label=1))
    plain = reference.sample(loaded, 2, label=1, steps="tuned")
    assert torch.equal(plain, reference.sample(image_model, 2, label=1, steps=PLAN))
    assert not torch.equal(plain, reference.sample(image_model, 2, label=1))


def test_a_model_without_a_plan_saves_none(image_model, tmp_path):
    image_model.save_pretrained(tmp_path / "plain")
    assert "step_plan" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    loaded = CDRL.from_pretrained(tmp_path / "plain")
    assert loaded.step_plan is None
    with pytest.raises(ValueError, match="needs a model with a tuned step plan.*tune_steps"):
        Sampler(loaded).sample(1, steps="tuned")


def test_plans_that_do_not_fit(image_model, tmp_path):
    with pytest.raises(TypeError, match="got 'tuned'; for a model's tuned plan"):
        image_model.schedule.plan("tuned")
    image_model.step_plan = START
    with pytest.raises(ValueError, match="one entry for each of 6 levels, got 3"):
        image_model.plan("tuned")
    with pytest.raises(ValueError, match="one entry for each of 6 levels, got 3"):
        image_model.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize(("budget", "even"), [(2, (1, 1)), (5, (3, 2))])
def test_never_over_budget_nor_worse_than_the_rule(point_model, points, budget, even):
    point_model.schedule = NoiseSchedule(2, 3, kappa=1e-3, step_scale="constant")
    options = {"samples": 40, "seed": 5, "max_seconds": math.inf}
    plan = tune_steps(point_model, points, budget=budget, **options)
    assert sum(plan.counts) <= budget
    rule = point_model.schedule.plan(even)
    judge, sampler = Judge(points), Sampler(point_model)
    for seed in (5, 6):
        before, after = (
            judge.distance(sampler.sample(40, seed=seed, steps=steps)) for steps in (rule, plan)
        )
        assert after < before
    assert tune_steps(point_model, points, budget=budget, **options) == plan
    assert point_model.step_plan is None


def test_images_are_compared_in_the_extractors_features(image_model):
    class Means(torch.nn.Module):
        def features(self, images):
            return images.flatten(2).mean(2).expand(-1, 2) + images[:, 0, :2, 0]

    digits = load_data("digits").subset(range(60))
    unlabelled = Dataset("grey", digits.values, None, (), digits.maximum)
    options = {"budget": 6, "samples": 12, "max_seconds": 0.1}
    plan = tune_steps(image_model, unlabelled, extractor=Means(), **options)
    assert sum(plan.counts) == 6
    with pytest.raises(DataError, match="needs images with labels"):
        tune_steps(image_model, unlabelled, **options)


def test_the_search_finds_the_best_plan():
    """The distance has its minimum at 1, 2 and 3 steps with multipliers 2, 1 and 1/2."""
    counts, best = (1, 2, 3), (2.0, 1.0, 0.5)

    def distance(plan, noise):
        gap = sum(math.log(h / b) ** 2 for h, b in zip(plan.multipliers, best, strict=True))
        return gap + sum((c - b) ** 2 for c, b in zip(plan.counts, counts, strict=True)) + noise

    plan = search(distance).run()
    assert plan.counts == counts
    for h, b in zip(plan.multipliers, best, strict=True):
        assert abs(math.log(h / b)) < math.log(1.3) / 2


def test_a_move_must_help_with_both_noises():
    calls = []

    def distance(plan, noise):
        calls.append((plan, noise))
        gain = sum(plan.multipliers) - 3
        return -gain if noise == 0 else abs(gain)

    assert search(distance).run() == START
    assert sum(noise for _, noise in calls) > 3
    assert len(set(calls)) == len(calls)


def test_divergence_is_rejected_and_the_search_stops_at_the_deadline():
    assert search(lambda plan, noise: 1.0 if plan == START else math.inf).run() == START
    calls = []
    search(lambda plan, noise: calls.append(plan) or 1.0 / len(calls), deadline=0.0).run()
    assert calls == [START, START]


def test_a_diverging_plan_is_infinitely_far(point_model, points, monkeypatch):
    """Chains with larger multipliers than the start's diverge here, so no plan has them."""

    class Fragile(Sampler):
        def sample(self, n, *, steps, **options):
            if max(steps.multipliers) > 3**0.5 + 1e-3:
                raise ChainDiverged("far off", level=1, step=1, sample=0)
            return super().sample(n, steps=steps, **options)

    monkeypatch.setattr(tuning, "Sampler", Fragile)
    plan = tune_steps(point_model, points, budget=6, samples=20)
    assert max(plan.multipliers) <= 3**0.5 + 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 5}, "budget: expected at least 6.*got 5"),
        ({"budget": 6, "samples": 1}, "samples: expected at least 2, got 1"),
        ({"budget": 6, "max_seconds": 0}, "max_seconds: expected a positive number, got 0"),
    ],
)
def test_bad_arguments(point_model, points, options, message):
    with pytest.raises(ValueError, match=message):
        tune_steps(point_model, points, **options)


def test_command_line(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "tuned")
    options = ["--budget", "7", "--samples", "10", "--minutes", "0.02"]
    assert main(["tune", "--out", out, *options]) == 0
    plan = CDRL.from_pretrained(out).step_plan
    assert sum(plan.counts) == 7
    assert str(plan) in capsys.readouterr().out
    picture = str(tmp_path / "x.png")
    assert main(["sample", "--model", out, "--steps", "tuned", "--n", "2", "--out", picture]) == 0
