"""Tests of the classifier: accuracy, reproducible training, and the cache of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl_fast.data import Dataset, checkerboard
from cdrl_fast.errors import DataError
from cdrl_fast.metrics import Classifier, label_accuracy, train_classifier


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call every training fails."""

    def fail(*_: object) -> None:
        raise AssertionError("trained")

    return lambda: monkeypatch.setattr("cdrl_fast.metrics.classifier._fit", fail)


def assert_same_weights(one: Classifier, other: Classifier) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_classifier_knows_digits_it_never_saw(
    classifier: Classifier, split: tuple[Dataset, Dataset], held_out_images: Tensor
) -> None:
    labels = torch.from_numpy(split[1].labels)
    assert label_accuracy(held_out_images, labels, classifier) >= 0.98


def test_predictions_are_the_most_likely_classes(
    classifier: Classifier, held_out_images: Tensor
) -> None:
    predicted = classifier.predict(held_out_images, batch_size=100)
    assert predicted.dtype == torch.int64
    assert set(predicted.tolist()) == set(range(1, 11))
    assert torch.equal(predicted, classifier(held_out_images).argmax(1) + 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (1, 28, 28), (2, 8, 64), (1, 13, 9)])
def test_classifier_takes_any_small_image(shape: tuple[int, ...]) -> None:
    network = Classifier(shape, 3)
    images = torch.randn(2, *shape)
    assert network(images).shape == (2, 3)
    features = network.features(images)
    assert features.shape == (2, 64)
    assert features.dtype == torch.float32


def test_cached_weights_are_taken_without_training(
    small: Dataset, tmp_path: Path, no_training: Callable[[], None]
) -> None:
    first = train_classifier(small, epochs=1, cache=tmp_path / "new")
    no_training()
    assert_same_weights(first, train_classifier(small, epochs=1, cache=tmp_path / "new"))
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_cache_depends_on_data_recipe_and_seed(
    small: Dataset, tmp_path: Path, no_training: Callable[[], None]
) -> None:
    train_classifier(small, epochs=1, cache=tmp_path)
    no_training()
    assert small.labels is not None
    relabelled = Dataset("x", small.values, small.labels % 10 + 1, small.classes, small.maximum)
    for data, seed, epochs in [
        (small, 1, 1),
        (small, 0, 2),
        (small.subset(range(199)), 0, 1),
        (relabelled, 0, 1),
    ]:
        with pytest.raises(AssertionError, match="trained"):
            train_classifier(data, seed=seed, epochs=epochs, cache=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cache_is_trained_again(
    damage: str, small: Dataset, tmp_path: Path, no_training: Callable[[], None]
) -> None:
    first = train_classifier(small, epochs=1, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    file.write_bytes({"truncated": content[:-5], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert_same_weights(first, train_classifier(small, epochs=1, cache=tmp_path))
    no_training()
    assert_same_weights(first, train_classifier(small, epochs=1, cache=tmp_path))


def test_default_cache_folder_comes_from_the_environment(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDRL_FAST_CACHE", str(tmp_path / "from_environment"))
    train_classifier(small, epochs=1)
    monkeypatch.delenv("CDRL_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    train_classifier(small, epochs=1)
    for folder in (tmp_path / "from_environment", tmp_path / ".cache" / "cdrl_fast"):
        assert [file.suffix for file in folder.iterdir()] == [".safetensors"]


def test_unwritable_cache_costs_a_warning_only(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not cached"):
        trained = train_classifier(small, epochs=1, cache=tmp_path / "file" / "folder")
    assert_same_weights(trained, train_classifier(small, epochs=1, cache=tmp_path / "cache"))


def test_interrupted_write_leaves_no_file(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="no space left"):
        train_classifier(small, epochs=1, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_is_seeded_and_leaves_the_global_state(small: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = train_classifier(small, seed=3, epochs=1, cache=tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    with torch.no_grad():
        other = train_classifier(small, seed=3, epochs=1, cache=tmp_path / "b")
    assert_same_weights(one, other)
    before = torch.get_rng_state()
    train_classifier(small, seed=3, epochs=1, cache=tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before)
    different = train_classifier(small, seed=4, epochs=1, cache=tmp_path / "a")
    assert not torch.equal(one.head.weight, different.head.weight)


def test_classifiers_are_checked(small: Dataset, tmp_path: Path, classifier: Classifier) -> None:
    for shape in [(1, 7, 8), (4, 8, 8), (1, 8, 65), (8, 8)]:
        with pytest.raises(ValueError, match="shape must be"):
            Classifier(shape, 10)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        Classifier((1, 8, 8), 1)
    with pytest.raises(ValueError, match=r"images must have shape \(n, 1, 8, 8\)"):
        classifier(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        train_classifier(small, epochs=0, cache=tmp_path)
    for data in (
        Dataset("pixels", small.values, None, (), small.maximum),
        Dataset("points", checkerboard(9), None, (), None),
    ):
        with pytest.raises(DataError, match="needs images with labels"):
            train_classifier(data, cache=tmp_path)


@pytest.mark.parametrize(("images", "epochs"), [(1000, 20), (60_000, 4), (500_000, 2)])
def test_large_data_are_seen_less_often(
    images: int, epochs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "cdrl_fast.metrics.classifier._fit",
        lambda model, data, recipe: seen.append(recipe.epochs),
    )
    values = np.broadcast_to(np.uint8(0), (images, 1, 8, 8))
    labels = np.arange(images, dtype=np.int64) % 2 + 1
    train_classifier(Dataset("many", values, labels, ("a", "b")), cache=tmp_path)
    assert seen == [epochs]
