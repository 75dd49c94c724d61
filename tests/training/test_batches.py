"""Batches: the same bits as ever, by whichever way they come, one iteration ahead or not."""

import threading

import numpy as np
import pytest
import torch

from cdrl_fast import Trainer
from cdrl_fast.data import Dataset, checkerboard
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.training.batches import Ahead, Batches
from cdrl_fast.training.config import TrainConfig

CPU = torch.device("cpu")


def images(n=40, maximum=255):
    rng = np.random.default_rng(0)
    values = rng.integers(0, maximum + 1, (n, 3, 4, 4), dtype=np.uint8)
    return Dataset("random", values, rng.integers(1, 4, n), ("a", "b", "c"), maximum)


def batches(data, device=CPU, dtype=torch.float32, **config):
    settings = TrainConfig(batch_size=16, **config)
    return Batches(data, settings, labelled=data.labels is not None, device=device, dtype=dtype)


@pytest.mark.parametrize("maximum", [1, 16, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_scaled_as_numpy_does(maximum, dtype):
    data = images(maximum=maximum)
    found = batches(data, dtype=dtype)
    for iteration in (0, 3):
        x0, _ = found.at(iteration)
        values = data.values[found.indices(iteration)].astype(np.float32)
        expected = values * np.float32(2) / np.float32(maximum) - np.float32(1)
        assert x0.dtype == dtype
        assert np.array_equal(x0.numpy(), expected.astype(x0.numpy().dtype))


def test_points_stay_as_they_are():
    data = Dataset("points", checkerboard(50), None, (), None)
    found = batches(data)
    x0, label = found.at(1)
    assert label is None
    assert np.array_equal(x0.numpy(), data.values[found.indices(1)])


def test_classes_are_those_of_the_model(image_model):
    """Named alike, in the same order; other names are the user's affair."""
    labels = np.ones(8, dtype=np.int64)
    values = np.zeros((8, 1, 8, 8), dtype=np.uint8)
    for names in (("zero", "one", "two"), ("zero", "one"), ("a", "b", "c")):
        data = Dataset("ours", values, labels, names)
        image_model.check_class_names(data.classes, data.name)
    swapped = Dataset("theirs", values, labels, ("one", "zero", "two"))
    with pytest.raises(ValueError, match="class 'one' is number 1 of 'theirs' and 2 of the model"):
        image_model.check_class_names(swapped.classes, swapped.name)
    with pytest.raises(ValueError, match="class 'one' is number 1"):
        Trainer(image_model, swapped, TrainConfig(batch_size=4))
    with pytest.raises(ValueError, match="class 'one' is number 1"):
        evaluate(image_model, swapped, swapped)


def test_going_ahead_gives_the_same_batches():
    """In order, across epochs, and after jumps as a resumed or rolled back run makes them."""
    straight, ahead = (batches(images(), flip=True, label_drop=0.5) for _ in range(2))
    ahead._rows = Ahead(ahead._stored)
    for iteration in (0, 1, 2, 3, 4, 5, 2, 3, 7, 7, 8):
        (x, label), (y, other) = straight.at(iteration), ahead.at(iteration)
        assert torch.equal(x, y)
        assert torch.equal(label, other)


def test_the_next_iteration_is_prepared_while_this_one_is_used():
    made, second = [], threading.Event()

    def rows(iteration):
        made.append((iteration, threading.current_thread() is threading.main_thread()))
        if iteration == 1:
            second.set()
        return torch.tensor([iteration]), None

    ahead = Ahead(rows)
    assert ahead(0)[0].item() == 0
    assert second.wait(timeout=60)
    assert made == [(0, False), (1, False)]
    assert ahead(1)[0].item() == 1
    assert [iteration for iteration, _ in made if iteration < 2] == [0, 1]


def test_an_error_belongs_to_its_iteration_and_may_pass():
    broken = [True]

    def rows(iteration):
        if iteration == 1 and broken.pop():
            broken.append(False)
            raise OSError("no such page")
        return torch.tensor([iteration]), None

    ahead = Ahead(rows)
    assert ahead(0)[0].item() == 0
    with pytest.raises(OSError, match="no such page"):
        ahead(1)
    assert ahead(1)[0].item() == 1


@pytest.mark.gpu
def test_a_gpu_gets_the_cpus_bits():
    device = torch.device("cuda", 0)
    for maximum in (7, 16, 41, 255):
        data = images(maximum=maximum)
        here, there = (batches(data, d, flip=True, label_drop=0.5) for d in (CPU, device))
        for iteration in (0, 1, 2, 5):
            (x, label), (y, other) = here.at(iteration), there.at(iteration)
            assert y.is_cuda
            assert torch.equal(x, y.cpu())
            assert torch.equal(label, other.cpu())
        assert all(rows.is_pinned() for rows in there._rows(6))


@pytest.mark.gpu
def test_batches_do_not_wait_on_the_gpu():
    found = batches(images(), torch.device("cuda", 0), flip=True)
    found.at(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found.at(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
