"""Fixtures: digits split in two, and a classifier trained on the larger part."""

from __future__ import annotations

import pytest
from torch import Tensor

from cdrl_fast.data import Dataset, load_data
from cdrl_fast.metrics import Classifier, train_classifier


@pytest.fixture(scope="session")
def split() -> tuple[Dataset, Dataset]:
    return load_data("digits").split(0.2, seed=0)


@pytest.fixture(scope="session")
def train_images(split: tuple[Dataset, Dataset]) -> Tensor:
    return split[0].batch(range(len(split[0])))[0]


@pytest.fixture(scope="session")
def held_out_images(split: tuple[Dataset, Dataset]) -> Tensor:
    return split[1].batch(range(len(split[1])))[0]


@pytest.fixture(scope="session")
def classifier(split: tuple[Dataset, Dataset]) -> Classifier:
    return train_classifier(split[0])


@pytest.fixture
def small(split: tuple[Dataset, Dataset]) -> Dataset:
    return split[0].subset(range(200))
