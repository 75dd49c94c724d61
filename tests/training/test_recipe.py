"""Recipes: shipped ones, JSON files, and files that are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, ResNetEnergy, Sampler
from cdrl_fast.cli.main import main
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.storage.locate import checkpoints_of
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.recipe import SHIPPED, ModelOptions, load_recipe
from tests.data.data_cases import CIFAR10_TRAIN, IMAGENET_TRAIN, cifar10_files, imagenet32_files

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# The paper's runs: parameters of their energy and initializer.
PUBLISHED = {
    "cifar10": (34_833_152, 3_769_795),
    "cdrl-large": (139_265_536, 3_769_795),
    "imagenet32": (35_346_176, 3_181_443),
}


def stand_in(spec):
    """Return a data set with the shape and classes of ``spec``, without its files."""
    if ":" not in spec:
        return load_data(spec)
    classes = tuple(str(i) for i in range({"cifar10": 10, "imagenet32": 1000}[spec.split(":")[0]]))
    return Dataset(spec, np.zeros((1, 3, 32, 32), np.uint8), np.ones(1, np.int64), classes)


def published_files(spec, folder):
    """Write small files in the format of a data set's publishers; return their spec."""
    kind, _, _ = spec.partition(":")
    if kind == "cifar10":
        (folder / "cifar-10-batches-bin").mkdir()
        cifar10_files(folder / "cifar-10-batches-bin", CIFAR10_TRAIN)
    else:
        imagenet32_files(folder, IMAGENET_TRAIN)
    return f"{kind}:{folder}"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_recipes_build_and_round_trip(path, tmp_path):
    recipe = load_recipe(path.stem)
    with torch.device("meta"):
        model = recipe.model.build(stand_in(recipe.data))
    assert isinstance(model.energy, ResNetEnergy if model.is_image else MLPEnergy)
    copy = tmp_path / "recipe.json"
    copy.write_text(json.dumps(recipe.to_dict()))
    assert load_recipe(copy) == recipe


def small_model(classes, seed, width=8):
    options = ModelOptions(width, (1,), 1, initializer_width=8, initializer_multipliers=(1,))
    data = Dataset("", np.zeros((1, 1, 4, 4), np.uint8), np.ones(1, np.int64), classes)
    return options.build(data, seed)


def test_warm_start_takes_the_layers_that_fit():
    """From a model with other classes: all layers but those of labels, spectral norms included."""
    model, other = small_model(("a", "b"), 0), small_model(("a", "b", "c"), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unchanged = model.warm_start(other)
    assert "energy.embedding.label" in unchanged
    assert all("label" in name for name in unchanged)
    source = other.state_dict()
    for name, value in model.state_dict().items():
        expected = before if name.rpartition(".")[0] in unchanged else source
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(model.energy.stem.weight, before["energy.stem.weight"])
    with pytest.raises(ValueError, match="no layer in common"):
        model.warm_start(CDRL.from_pretrained("checkerboard"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_networks_have_their_sizes(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = recipe.model.build(stand_in(recipe.data))
    networks = (model.energy, model.initializer)
    assert tuple(sum(p.numel() for p in n.parameters()) for n in networks) == PUBLISHED[name]
    assert model.num_classes == (1000 if name == "imagenet32" else 0)


def test_the_defaults_are_the_papers_run():
    recipe = load_recipe("cifar10")
    assert recipe.model == ModelOptions(conditional=False)
    run = {"preview_every": 2000, "checkpoint_every": 5000, "checkpoint_minutes": 30.0}
    assert recipe.training == TrainConfig(flip=True, **run)
    assert recipe.iterations * recipe.training.batch_size == 102_400_000
    wide = load_recipe("cdrl-large")
    assert wide == replace(recipe, model=replace(recipe.model, energy_width=256))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_recipes_train_on_their_data(name, tmp_path):
    data = published_files(load_recipe(name).data, tmp_path)
    small = ["--energy-width", "8", "--energy-blocks", "1", "--initializer-width", "8"]
    small += ["--initializer-blocks", "1", "--steps", "2", "--batch-size", "4"]
    run = tmp_path / "run"
    options = ["--recipe", name, "--data", data, "--out", str(run), "--iterations", "2"]
    assert main(["train", *options, *small, "--log-every", "1", "--precision", "fp32"]) == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["energy_loss"]) for line in lines)
    model = CDRL.from_pretrained(checkpoints_of(run)[-1])
    assert model.num_classes == (1000 if name == "imagenet32" else 0)
    assert model.initializer.config["attention"] == (16, 8)
    stored = load_recipe(run / "recipe.json")
    assert stored.training == replace(
        load_recipe(name).training, batch_size=4, log_every=1, precision="fp32"
    )


def test_the_shipped_model_has_the_recipes_config(tmp_path):
    recipe = load_recipe("digits")
    fresh = recipe.model.build(load_data("digits"))
    shipped = CDRL.from_pretrained("digits")
    fresh.step_plan = shipped.step_plan
    assert fresh.to_config() == shipped.to_config()


def test_building_is_seeded_and_leaves_torch_alone():
    data = load_data("checkerboard")
    options = ModelOptions(energy_width=16, energy_multipliers=(1,))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second, other = (options.build(data, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.energy.stem.weight, second.energy.stem.weight)
    assert not torch.equal(first.energy.stem.weight, other.energy.stem.weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "recipe.json: Invalid JSON"),
        ("[1]", "recipe.json: Input should be an object$"),
        ('{"datas": "digits"}', "datas: unknown; expected data, .*, got .digits."),
        ('{"model": {"width": 3}}', "model: width: unknown; expected attention, .*, got 3"),
        ('{"training": {"lr": 3}}', "training: lr: unknown; expected accumulate"),
        ('{"training": {"batch_size": 0}}', "training: batch_size: .* equal to 1, got 0"),
        ('{"training": {"batch_size": "many"}}', "training: batch_size: .* integer, got 'many'"),
        ('{"model": {"conditional": "no"}}', "model: conditional: .* boolean, got 'no'"),
        ('{"model": {"attention": 16}}', "model: attention: .* array, got 16"),
        ('{"model": null}', "model: Input should be an object, got None"),
        ('{"image_size": 1.5}', "image_size: .* integer, got 1.5"),
    ],
)
def test_bad_recipes(text, message, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)
    with pytest.raises(ValueError, match="neither a shipped recipe"):
        load_recipe(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("name", "recipe"), [("digits", "digits"), ("fashion-mnist", EXAMPLES / "fashion-mnist.json")]
)
def test_shipped_models_match_their_recipes(name, recipe):
    model, recipe = CDRL.from_pretrained(name), load_recipe(recipe)
    config = model.energy.config
    assert config["width"] == recipe.model.energy_width
    assert tuple(config["multipliers"]) == recipe.model.energy_multipliers
    assert config["blocks"] == recipe.model.energy_blocks
    assert model.initializer.config["width"] == recipe.model.initializer_width
    samples = Sampler(model).sample(2, label=1, steps=1)
    assert samples.shape == (2, *model.sample_shape)
    assert samples.std() > 0.1


def test_the_shipped_checkerboard_is_one():
    """Its points are inside the eight squares, which they fill evenly; it matches its recipe."""
    model, recipe = CDRL.from_pretrained("checkerboard"), load_recipe("checkerboard")
    assert model.energy.config["width"] == recipe.model.energy_width
    assert tuple(model.energy.config["multipliers"]) == recipe.model.energy_multipliers
    figures = evaluate(model, load_data("checkerboard"), None, samples=2000)
    assert figures["inside"] > 0.85
    assert 0.7 < figures["smallest_share"] < figures["largest_share"] < 1.3
