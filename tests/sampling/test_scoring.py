"""Log-densities of samples per level, outliers among them, and the command that scores."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from gaussians import GaussianMixture, model_of

from cdrl_fast import CDRL, Sampler, conditional, normal, product
from cdrl_fast.cli.main import main
from cdrl_fast.metrics import GaussianBaseline, auroc
from cdrl_fast.sampling.scoring import LevelStatistics

MIXTURE = GaussianMixture([[-1.0, 0.5], [2.0, -1.0]], [0.3, 0.8], [0.25, 0.75])


def test_closed_form_densities_at_every_level():
    model = model_of(MIXTURE)
    schedule = model.schedule
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(model, precision="fp64")
    for t in range(1, schedule.levels + 1):
        noisy = x.double()
        signal, variance = schedule.alpha_bar[t - 1], schedule.noise_variance[t - 1]
        if t > 1:
            # The draw is purpose 5 with the level as index.
            noise = normal(x.shape, seed=4, draw=5 * 2**24 + t, first_sample=7, dtype=torch.float64)
            noisy = math.sqrt(signal) * noisy + math.sqrt(variance) * noise
        actual = sampler.log_density(x, levels=(t,), seed=4, first_sample=7, batch_size=20)
        expected = MIXTURE.log_density(noisy, float(signal))
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_statistics_standardise():
    sampler = Sampler(model_of(MIXTURE))
    train, other = MIXTURE.sample(400), MIXTURE.sample(100, seed=1)
    statistics = sampler.level_statistics(train)
    assert statistics.levels == (1, 2, 3, 4, 5, 6)
    level_scores = [
        (sampler.log_density(other, levels=(t,)) - statistics.mean[t - 1]) / statistics.std[t - 1]
        for t in (3, 1)
    ]
    scores = sampler.log_density(other, levels=(3, 1), statistics=statistics)
    torch.testing.assert_close(scores, torch.stack(level_scores).mean(0))
    train_scores = sampler.log_density(train, levels=(2,), statistics=statistics)
    assert abs(train_scores.mean()) < 1e-5
    assert train_scores.std() == pytest.approx(1.0, abs=1e-5)
    assert sampler.log_density(other[:0]).shape == (0,)


def test_labels_and_combinations(image_model):
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    exact = copy.deepcopy(image_model).double()
    with torch.no_grad():
        expected = exact.log_density(x.double(), 1, torch.tensor([1, 2, 3]))
    actual = Sampler(image_model, precision="fp64").log_density(x, label=[1, 2, 3], batch_size=2)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    a, b, none = (
        Sampler(conditional(image_model, k), precision="fp64").log_density(x) for k in (1, 2, 0)
    )
    both = Sampler(
        product(conditional(image_model, 1), conditional(image_model, 2)), precision="fp64"
    )
    torch.testing.assert_close(both.log_density(x), a + b - none)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {}, TypeError, "floating-point tensor"),
        (torch.zeros(2, 8, 8), {}, ValueError, r"expected \(n, 1, 8, 8\), got \(2, 8, 8\)"),
        (torch.full((2, 1, 8, 8), 255.0), {}, ValueError, r"expected images in \[-1, 1\]"),
        (torch.full((2, 1, 8, 8), float("nan")), {}, ValueError, "images must be finite, got NaN"),
        (torch.zeros(2, 1, 8, 8), {"levels": (1, 2)}, ValueError, "several levels need statistics"),
        (torch.zeros(2, 1, 8, 8), {"levels": (7,)}, ValueError, "level must be in"),
        (torch.zeros(2, 1, 8, 8), {"label": 9}, ValueError, "label: expected 1 to 3"),
        (torch.zeros(2, 1, 8, 8), {"batch_size": 0}, ValueError, "batch_size must be in"),
    ],
)
def test_bad_input(image_model, images, options, error, message):
    with pytest.raises(error, match=message):
        Sampler(image_model).log_density(images, **options)


def test_statistics_that_do_not_fit(image_model):
    sampler = Sampler(image_model)
    with pytest.raises(ValueError, match="at least 2 samples"):
        sampler.level_statistics(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="none for level 2"):
        sampler.log_density(
            torch.zeros(2, 1, 8, 8), levels=(2,), statistics=LevelStatistics((1,), (0.0,), (1.0,))
        )
    with pytest.raises(ValueError, match="at least one level"):
        sampler.level_statistics(torch.zeros(2, 1, 8, 8), levels=())


def test_auroc_counts_pairs():
    inside, outside = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 0.0])
    pairs = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    assert auroc(inside, outside) == pytest.approx(float(pairs.mean()))


def test_gaussian_baseline_is_the_gaussian():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    x = torch.from_numpy(rng.normal(size=(500, 4)) @ mixing + 1.0)
    baseline = GaussianBaseline(x.view(500, 1, 2, 2), min_variance=0.0)
    covariance = np.cov(x.numpy().T, bias=True)
    exact = torch.distributions.MultivariateNormal(x.mean(0), torch.from_numpy(covariance))
    actual = baseline.log_density(x.view(500, 1, 2, 2))
    expected = exact.log_prob(x)
    torch.testing.assert_close(actual - actual.mean(), expected - expected.mean())


def test_log_densities_separate_digits_from_other_images():
    """The AUROC of examples/outliers.py is 1.00 for noise and 0.97 for means of two digits."""
    from cdrl_fast.data import load_data

    _, held_out = load_data("digits").split(0.2)
    images = held_out.batch(range(300))[0]
    sampler = Sampler(CDRL.from_pretrained("digits"))
    inside = sampler.log_density(images)
    assert auroc(inside, sampler.log_density((images + images.flip(0)) / 2)) > 0.9
    assert auroc(inside, sampler.log_density(torch.rand_like(images) * 2 - 1)) > 0.99


def test_the_command(tmp_path, capsys):
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((16, 16), 90 * i, np.uint8)).save(tmp_path / f"{i}.png")
    arguments = ["score", f"folder:{tmp_path}", "--against", "digits", "--levels", "1", "2"]
    arguments += ["--train", "digits", "--out", str(tmp_path / "scores.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "scores.json").read_text())
    folder = stored[f"folder:{tmp_path}"]
    assert folder["files"] == ["0.png", "1.png", "2.png"]
    assert len(stored["digits"]["scores"]) == 1797
    scores = [torch.tensor(stored[name]["scores"]) for name in (f"folder:{tmp_path}", "digits")]
    assert f"AUROC of folder:{tmp_path} against digits: {auroc(*scores):.4f}" in printed
    lowest = folder["files"][int(np.argmin(folder["scores"]))]
    assert f"  {lowest}: " in printed
