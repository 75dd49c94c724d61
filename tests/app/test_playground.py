"""The computations behind the page of `cdrl-fast app`."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast import (
    CDRL,
    NoiseSchedule,
    ResNetEnergy,
    Sampler,
    conditional,
    mixture,
    negated,
    product,
)
from cdrl_fast.app.playground import (
    BOTH,
    CELL,
    EITHER,
    NOT,
    ImageScore,
    Playground,
    grid,
    painted_mask,
)
from cdrl_fast.errors import DataError


@pytest.fixture
def playground(image_model):
    return Playground(image_model, references=7)


@pytest.fixture
def colours():
    """A playground with an unconditional model of colour images."""
    energy = ResNetEnergy(3, 8, (1, 2), 1)
    return Playground(CDRL(energy, None, NoiseSchedule(steps=1), sample_shape=(3, 8, 8)))


def test_a_grid_enlarges_pixels_without_mixing_them():
    images = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    picture = np.asarray(grid(images))
    assert picture.shape == (2 * CELL + 2, 3 * CELL + 4, 3)
    second = picture[:CELL, CELL + 2 : 2 * CELL + 2, 0].reshape(8, CELL // 8, 8, CELL // 8)
    levels = ((images[1, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(second, np.broadcast_to(levels[:, None, :, None], second.shape))
    assert grid(images[:1]).width == CELL
    assert max(grid(torch.zeros(64, 3, 32, 32)).size) <= 500


def test_sample_keeps_the_states_of_the_same_run(playground, image_model):
    film = playground.sample(5, label=2, guidance=1.0, steps=2, seed=3)
    options = {"label": "one", "guidance": 1.0, "steps": 2, "seed": 3}
    trace = Sampler(image_model).sample_trace(5, trace="levels", **options)
    assert film.levels == 6
    assert torch.equal(film.states[-1], trace.samples)
    assert torch.equal(film.states[:-1], trace.states[:-1])
    assert [film.caption(done) for done in (0, 4, 6)] == [
        "x_6, noise", "x_2, after level 3", "x_0, the samples",
    ]  # fmt: skip
    assert film.picture(6).tobytes() == grid(trace.samples).tobytes()
    assert film.picture(0).tobytes() == grid(trace.states[0]).tobytes()


def test_class_0_is_any(playground, image_model, colours):
    assert playground.classes == [("zero", 1), ("one", 2), ("two", 3)]
    film = playground.sample(2, label=0, steps=1)
    assert torch.equal(film.states[-1], Sampler(image_model).sample(2, steps=1))
    assert torch.equal(playground.sample(2, label=0, guidance=1.0, steps=1).states, film.states)
    assert colours.classes == []
    assert colours.sample(2, label=0, steps=1).states.shape == (7, 2, 3, 8, 8)


def test_classes_without_names_are_numbered():
    energy = ResNetEnergy(1, 8, (1, 2), 1, classes=2)
    model = CDRL(energy, None, NoiseSchedule(), sample_shape=(1, 8, 8))
    assert Playground(model).classes == [("1", 1), ("2", 2)]


def test_drawn_images_are_those_of_the_seed(playground, image_model):
    expected = Sampler(image_model).sample(3, label="two", seed=5)
    torch.testing.assert_close(playground.draw(3, 5, 2), expected[2:], rtol=0, atol=1e-4)


def test_pictures_get_the_models_size_and_channels(playground, colours, tmp_path):
    red = Image.new("RGB", (40, 24), (255, 0, 0))
    grey = playground.fit_image(red)
    assert grey.shape == (1, 1, 8, 8)
    # The luminance of red is 0.299.
    torch.testing.assert_close(grey, torch.full_like(grey, 2 * 76 / 255 - 1))
    red.save(tmp_path / "red.png")
    plane = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(1, 3, 8, 8)
    assert torch.equal(colours.fit_image(tmp_path / "red.png"), plane)
    assert torch.equal(colours.fit_image(Image.new("L", (9, 9), 255)), torch.ones(1, 3, 8, 8))
    transparent = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    assert torch.equal(playground.fit_image(transparent), -torch.ones(1, 1, 8, 8))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: cannot be read as an image"):
        playground.fit_image(tmp_path / "text.png")


def test_an_image_comes_back_from_the_canvas(playground, colours):
    for tested, channels in ((playground, 1), (colours, 3)):
        shades = torch.arange(channels * 64).reshape(1, channels, 8, 8) / 127.5 - 1
        torch.testing.assert_close(tested.fit_image(tested.canvas(shades)), shades)


def test_a_pixel_counts_as_painted_from_a_quarter_on():
    layer = np.zeros((80, 80, 4), np.uint8)
    layer[:10, :3, 3] = 255  # three tenths of the first pixel
    layer[:10, 10:12, 3] = 255  # two tenths of the second
    other = np.zeros_like(layer)
    other[70:, 70:, 3] = 255
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0, 0] = expected[7, 7] = True
    layers = [Image.fromarray(layer), Image.fromarray(other)]
    assert torch.equal(painted_mask(layers, (8, 8)), expected)
    assert not painted_mask([], (8, 8)).any()


def test_complete_without_a_class_draws_candidates_of_each(playground, image_model):
    layer = Image.new("RGBA", (256, 256))
    layer.paste((224, 123, 57, 255), (0, 128, 256, 256))
    image = torch.zeros(1, 1, 8, 8)
    _, completions = playground.complete(image, [layer], n=2, label=0, seed=4)
    known = torch.arange(8)[:, None] < 4
    options = {"samples": 2, "seed": 4}
    expected = Sampler(image_model).inpaint(image, known, candidates=3, **options)
    torch.testing.assert_close(completions, expected, rtol=0, atol=1e-5)


def test_complete_fills_the_painted_part_only(playground, image_model):
    image = playground.draw(1, 0, 0)
    assert playground.canvas(image).size == playground.canvas_size == (256, 256)
    layer = Image.new("RGBA", (256, 256))
    layer.paste((224, 123, 57, 255), (0, 128, 256, 256))
    masked, completions = playground.complete(image, [layer], n=3, label=1, passes=2, seed=4)
    assert torch.equal(completions[:, :, :4], image[:, :, :4].expand(3, 1, 4, 8))
    assert torch.equal(masked[:, :, :4], image[:, :, :4])
    assert not masked[:, :, 4:].any()
    known = torch.arange(8)[:, None] < 4
    options = {"label": "zero", "samples": 3, "passes": 2, "seed": 4}
    assert torch.equal(completions, Sampler(image_model).inpaint(image, known, **options))
    with pytest.raises(ValueError, match="image: draw a sample or upload"):
        playground.complete(None, [layer], n=3)
    with pytest.raises(ValueError, match="mask: paint over"):
        playground.complete(image, [Image.new("RGBA", (256, 256))], n=3)


def test_compose(playground, image_model):
    one, two = conditional(image_model, "one"), conditional(image_model, "two")
    expected = {
        BOTH: product(one, two),
        EITHER: mixture(one, two, weights=(0.25, 0.75)),
        NOT: negated(one, two, 0.7),
    }
    for kind, density in expected.items():
        samples = playground.compose(2, 3, kind, weight=0.7, share=0.25, correctors=2, n=6, seed=1)
        assert torch.equal(samples, Sampler(density).sample(6, correctors=2, seed=1)), kind
    with pytest.raises(ValueError, match="kind: expected one of"):
        playground.compose(1, 2, "neither")


def test_score_compares_an_image_with_samples_of_the_model(playground, image_model):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    score = playground.score(picture)
    sampler = Sampler(image_model)
    label = [1, 2, 3, 1, 2, 3, 1]
    reference = sampler.log_density(sampler.sample(7, label=label)).sort().values
    np.testing.assert_allclose(score.reference, reference.double().numpy(), rtol=1e-6)
    image = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float()[None, None]
    torch.testing.assert_close(score.image, image)
    assert score.log_density == float(sampler.log_density(score.image)[0])
    assert playground.score(picture).reference is score.reference


def test_a_score_as_text_and_as_a_figure():
    score = ImageScore(2.5, np.array([1.0, 2.0, 3.0, 4.0]), torch.zeros(1, 1, 8, 8))
    assert score.percentile == 50.0
    assert "**2.5**" in score.describe()
    assert "Percentile **50**: higher than that of 50 % of 4 samples" in score.describe()
    lines = [line.get_xydata().tolist() for line in score.figure().axes[0].get_lines()]
    assert [[1, 25], [2, 50], [3, 75], [4, 100]] in lines
    assert [[2.5, 50]] in lines


def test_models_of_points_are_refused(point_model):
    with pytest.raises(ValueError, match=r"a model of grey or colour images, .* shape \(2,\)"):
        Playground(point_model)
