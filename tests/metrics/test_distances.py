"""Tests of metrics against closed forms and small cases computed by hand."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl_fast.data import checkerboard
from cdrl_fast.errors import CheckpointError
from cdrl_fast.metrics import (
    Classifier,
    checkerboard_shares,
    copying_check,
    evaluate_images,
    frechet_distance,
    inception_fid,
    label_accuracy,
    nearest_distances,
    precision_recall,
    sliced_wasserstein,
)
from cdrl_fast.metrics.inception import _Inception


class Pixels:
    """A feature extractor whose features are the pixels themselves."""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def line(*values: float) -> Tensor:
    """Return one image of a single pixel per value."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def gaussian_images(mean: Tensor, root: Tensor, n: int, seed: int) -> Tensor:
    """Return 2x2 images with exactly the sample mean ``mean`` and covariance root root^T."""
    z = normal(n, 4, seed=seed)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T
    images: Tensor = (z @ root.T + mean).view(n, 1, 2, 2)
    return images


def test_frechet_distance_has_the_closed_form_of_two_gaussians() -> None:
    roots = [torch.eye(4, dtype=torch.float64) + 0.4 * normal(4, 4, seed=s).tril() for s in (1, 2)]
    means = [normal(4, seed=3), normal(4, seed=4)]
    real = gaussian_images(means[0], roots[0], 300, seed=5)
    fake = gaussian_images(means[1], roots[1], 200, seed=6)
    s1, s2 = (root @ root.T for root in roots)
    # tr (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2)^T S2^(1/2).
    cross = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    expected = (means[0] - means[1]).square().sum() + s1.trace() + s2.trace() - 2 * cross
    assert frechet_distance(real, fake, Pixels()) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    images = normal(50, 1, 2, 2).float()
    distance = frechet_distance(images, images + 0.5, Pixels())
    assert distance == pytest.approx(4 * 0.25, rel=1e-5)


def test_frechet_distance_to_itself_is_zero_far_from_the_origin() -> None:
    images = 1000 + normal(50, 1, 3, 3)
    assert 0 <= frechet_distance(images, images, Pixels()) < 1e-6


def test_frechet_distance_leaves_the_extractor_in_float32(classifier: Classifier) -> None:
    images = normal(20, 1, 8, 8).float()
    frechet_distance(images, images, classifier)
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


def test_precision_and_recall_on_a_line() -> None:
    # Radii to the first neighbour: 5, 1, 1, 1, 1, 1, 1 and 2.4, 2.1, 2.1, 6.
    real = line(-5, 0, 1, 2, 10, 11, 12)
    fake = line(0.5, 2.9, 5, 11)
    assert precision_recall(real, fake, Pixels(), neighbours=1) == (3 / 4, 6 / 7)


def test_covering_one_of_two_modes_halves_the_recall_only() -> None:
    modes = (
        normal(400, 1, 1, 2, seed=1) + torch.tensor([-20.0, 20.0]).repeat(200)[:, None, None, None]
    )
    fake = normal(300, 1, 1, 2, seed=2) * 0.9 - 20
    precision, recall = precision_recall(modes, fake, Pixels())
    assert precision > 0.95
    assert 0.4 < recall <= 0.5
    assert precision_recall(fake, modes, Pixels()) == (recall, precision)


def test_noise_has_neither_precision_nor_recall() -> None:
    real, fake = 0.01 * normal(50, 1, 2, 2), 100 + normal(60, 1, 2, 2)
    assert precision_recall(real, fake, Pixels()) == (0, 0)


def test_copies_have_precision_one() -> None:
    real = normal(60, 1, 5, 5)
    assert precision_recall(real, real[:20], Pixels())[0] == 1


def test_label_accuracy_counts_the_agreements(
    classifier: Classifier, held_out_images: Tensor
) -> None:
    images = held_out_images[:8]
    labels = classifier.predict(images)
    labels[:2] = labels[:2] % 10 + 1
    assert label_accuracy(images, labels, classifier) == 0.75


def test_nearest_distances_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
    images = torch.tensor([[0.0, 0.5], [1.0, 0.0], [4.0, 4.0]]).view(3, 1, 1, 2)
    distances = nearest_distances(images, reference)
    assert distances.dtype == torch.float32
    assert distances.tolist() == [0.5, 0.0, 5.0]


def test_nearest_distances_of_many_images() -> None:
    images, reference = normal(600, 1, 1, 3, seed=1), normal(5500, 1, 1, 3, seed=2)
    images[550] = reference[5400]
    brute = (images.view(600, 1, 3) - reference.view(1, 5500, 3)).norm(dim=2).amin(1)
    distances = nearest_distances(images, reference)
    torch.testing.assert_close(distances, brute.float())
    assert distances[550] == 0


def test_copies_of_training_images_are_detected(
    train_images: Tensor, held_out_images: Tensor
) -> None:
    copies = train_images[:300] + 0.01 * normal(300, 1, 8, 8).float()
    check = copying_check(copies, train_images, held_out_images)
    assert check.copied
    assert check.share == 1
    assert check.samples_median == pytest.approx(0.01 * math.sqrt(64), rel=0.1)
    assert check.ratio == check.samples_median / check.held_out_median < 0.1


def test_held_out_images_are_not_copies(train_images: Tensor, held_out_images: Tensor) -> None:
    fresh = torch.arange(len(train_images)) % 4 == 0
    check = copying_check(train_images[fresh], train_images[~fresh], held_out_images)
    assert not check.copied
    assert check.share < 0.03
    assert 0.9 < check.ratio < 1.1


def test_rare_copies_are_detected(train_images: Tensor, held_out_images: Tensor) -> None:
    samples = torch.cat([held_out_images[:180], train_images[:20]])
    check = copying_check(samples, train_images, held_out_images)
    assert check.copied
    assert check.share == pytest.approx(0.1, abs=0.02)
    assert check.ratio > 0.9


def test_copying_check_refuses_training_images_as_held_out(train_images: Tensor) -> None:
    with pytest.raises(ValueError, match="held_out must not consist of training images"):
        copying_check(train_images[:50] + 0.1, train_images, train_images[:100])


def test_all_figures_of_the_held_out_images_themselves(
    classifier: Classifier, train_images: Tensor, held_out_images: Tensor
) -> None:
    state = torch.get_rng_state()
    figures = evaluate_images(held_out_images, train_images, held_out_images, classifier)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())
    distance = frechet_distance(train_images, held_out_images, classifier)
    assert figures["frechet"] == figures["frechet_held_out"] == pytest.approx(distance)
    assert figures["frechet_noise"] > 10 * figures["frechet_held_out"] > 0
    expected = precision_recall(train_images, held_out_images, classifier)
    assert (figures["precision"], figures["recall"]) == expected
    assert min(expected) > 0.8
    assert figures["copying_ratio"] == 1
    assert figures["copied"] == 0
    counts = [figures[f"{name}_count"] for name in ("samples", "train", "held_out")]
    assert counts == [len(held_out_images), len(train_images), len(held_out_images)]


def test_all_figures_of_noise_are_bad(
    classifier: Classifier, train_images: Tensor, held_out_images: Tensor
) -> None:
    noise = normal(360, 1, 8, 8, seed=9).float().clamp(-1, 1)
    figures = evaluate_images(noise, train_images, held_out_images, classifier)
    assert figures["frechet"] == pytest.approx(figures["frechet_noise"], rel=0.2)
    assert figures["precision"] < 0.2
    assert figures["copying_ratio"] > 1.5


def test_checkerboard_data_fill_all_squares() -> None:
    inside, shares = checkerboard_shares(checkerboard(20_000))
    assert inside == 1
    np.testing.assert_allclose(shares, 1 / 8, atol=0.01)


def test_checkerboard_shares_by_hand() -> None:
    # Columns and rows: (0, 0) and (2, 0) are squares 0 and 1, (3, 3) is 7; (1, 0) is a gap.
    points = np.array([[-7, -7], [-6, -6], [1, -7], [7, 7], [-3, -7], [90, 0], [0, math.nan]])
    inside, shares = checkerboard_shares(points)
    assert inside == pytest.approx(4 / 7)
    assert shares.tolist() == [0.5, 0.25, 0, 0, 0, 0, 0, 0.25]


def test_checkerboard_shares_with_nothing_inside() -> None:
    inside, shares = checkerboard_shares(np.full((3, 2), 100.0))
    assert inside == 0
    assert shares.tolist() == [0] * 8
    with pytest.raises(ValueError, match="at least one point"):
        checkerboard_shares(np.empty((0, 2)))


def test_inception_fid_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(
        ImportError, match=r'torch-fidelity .* pip install "cdrl-fast\[inception\]"'
    ):
        inception_fid(images, images)


def test_inception_fid_names_the_missing_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(CheckpointError, match=r"hub/checkpoints/.*no Inception weights"):
        inception_fid(images, images)
    with pytest.raises(CheckpointError, match=r"my\.pth: no Inception weights"):
        inception_fid(images, images, weights=tmp_path / "my.pth")
    (tmp_path / "my.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"my\.pth: not Inception weights"):
        inception_fid(images, images, weights=tmp_path / "my.pth")


def test_inception_network_gets_bytes_in_three_channels() -> None:
    seen: list[Tensor] = []

    def network(levels: Tensor) -> Tensor:
        seen.append(levels)
        return levels.flatten(1).float()

    _Inception(network).features(line(-1.1, -1, 0.2, 1, 1.3))
    assert seen[0].dtype == torch.uint8
    assert seen[0].flatten(1).tolist() == [[level] * 3 for level in (0, 0, 153, 255, 255)]


@pytest.mark.parametrize("module", ["torchmetrics.image.fid", "sklearn.neighbors"])
def test_missing_packages_are_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    images = normal(10, 1, 2, 2)
    metric = frechet_distance if module.startswith("torch") else precision_recall
    with pytest.raises(ImportError, match=r'pip install "cdrl-fast\[demo\]"'):
        metric(images, images, Pixels())


def test_images_are_checked() -> None:
    good = torch.zeros(6, 1, 8, 8)
    with pytest.raises(ValueError, match="fake must contain at least 2 images, got 1"):
        frechet_distance(good, good[:1], Pixels())
    with pytest.raises(ValueError, match="real must contain at least 6 images, got 5"):
        precision_recall(good[:5], good, Pixels())
    with pytest.raises(ValueError, match="images must contain at least 1"):
        nearest_distances(good[:0], good)
    with pytest.raises(ValueError, match=r"one shape .*\(6, 1, 8, 9\)"):
        frechet_distance(good, torch.zeros(6, 1, 8, 9), Pixels())
    with pytest.raises(TypeError, match=r"fake must be floating point .* torch.uint8"):
        frechet_distance(good, good.byte(), Pixels())
    with pytest.raises(ValueError, match="samples must be finite, got NaN or Inf values"):
        copying_check(good / 0, good, good)
    with pytest.raises(ValueError, match="neighbours must be at least 1"):
        precision_recall(good, good, Pixels(), neighbours=0)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        inception_fid(torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8))


def test_features_are_checked() -> None:
    class Flat:
        def features(self, images: Tensor) -> Tensor:
            return images.flatten()

    with pytest.raises(ValueError, match=r"extractor must return .* got \(16,\)"):
        frechet_distance(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2), Flat())


def test_labels_are_checked(classifier: Classifier) -> None:
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        label_accuracy(images, torch.ones(2, dtype=torch.int64), classifier)
    for bad in (0, 11):
        with pytest.raises(ValueError, match="labels must be from 1 to 10"):
            label_accuracy(images, torch.full((3,), bad), classifier)


# Sliced Wasserstein distance


def test_sliced_wasserstein_of_a_shift() -> None:
    """(u . v)^2 has mean |v|^2 / 2 over the directions u, and variance |v|^4 / 8."""
    points, shift = normal(50, 2), torch.tensor([3.0, -4.0])
    directions = 4000
    squared = sliced_wasserstein(points, points + shift, directions=directions) ** 2
    assert abs(squared - 12.5) < 4 * 25 / math.sqrt(8 * directions)


def test_sliced_wasserstein_does_not_see_order_or_multiplicity() -> None:
    points = normal(7, 3)
    repeated = points.repeat(3, 1)[torch.randperm(21, generator=torch.Generator().manual_seed(1))]
    assert sliced_wasserstein(points, repeated) < 1e-12
    assert sliced_wasserstein(repeated, points) < 1e-12
    # On the line: half the mass of {0, 1} moves by 1 to make {1, 1, 1}.
    two, three = torch.tensor([[0.0], [1.0]]), torch.ones(3, 1)
    assert sliced_wasserstein(torch.tensor([[0.0]]), three) == pytest.approx(1)
    assert sliced_wasserstein(two.repeat(3, 1), three) == pytest.approx(math.sqrt(0.5))


def test_sliced_wasserstein_of_equal_distributions_is_small() -> None:
    exact = torch.from_numpy(checkerboard(4000, seed=1))
    other = torch.from_numpy(checkerboard(4000, seed=2))
    near = sliced_wasserstein(exact, other)
    assert near < 0.5 * sliced_wasserstein(exact, other + 0.5)


@pytest.mark.parametrize(
    ("real", "fake", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), {}, r"got \(3, 2\) and \(3, 3\)"),
        (torch.zeros(3, 2), torch.zeros(0, 2), {}, "one or more points in each set, got 3 and 0"),
        (torch.zeros(3, 2), torch.full((3, 2), math.nan), {}, "finite points"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"directions": 0}, "at least 1, got 0"),
    ],
)
def test_sliced_wasserstein_refuses(
    real: Tensor, fake: Tensor, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(real, fake, **options)
