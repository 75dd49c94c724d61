"""Recipes: shipped ones, files, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, ResNetEnergy, Sampler
from cdrl_fast.data import load_data
from cdrl_fast.recipe import SHIPPED, ModelOptions, load_recipe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_recipes_build_and_round_trip(path, tmp_path):
    recipe = load_recipe(path.stem)
    model = recipe.model.build(load_data(recipe.data))
    assert isinstance(model.energy, ResNetEnergy if model.is_image else MLPEnergy)
    copy = tmp_path / "recipe.json"
    copy.write_text(json.dumps(recipe.to_dict()))
    assert load_recipe(copy) == recipe


def test_the_shipped_model_is_the_recipes(tmp_path):
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
        ("{", "not a JSON file"),
        ("[1]", "expected a JSON object, got list"),
        ('{"datas": "digits"}', "unknown datas; known: data"),
        ('{"model": {"width": 3}}', "model: unknown width; known: attention"),
        ('{"training": {"lr": 3}}', "training: unknown lr"),
        ('{"training": {"batch_size": 0}}', "batch_size >= 1"),
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
def test_shipped_models_are_of_their_recipes(name, recipe):
    model, recipe = CDRL.from_pretrained(name), load_recipe(recipe)
    config = model.energy.config
    assert config["width"] == recipe.model.energy_width
    assert tuple(config["multipliers"]) == recipe.model.energy_multipliers
    assert config["blocks"] == recipe.model.energy_blocks
    assert model.initializer.config["width"] == recipe.model.initializer_width
    samples = Sampler(model).sample(2, label=1, steps=1)
    assert samples.shape == (2, *model.sample_shape)
    assert samples.std() > 0.1
