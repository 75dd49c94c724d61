"""Batches: the same bits on every device, prefetched or not."""

import threading

import numpy as np
import pytest
import torch

from cdrl_fast import Trainer
from cdrl_fast.data import Dataset, checkerboard
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.training.batches import Batches, Prefetch
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
    scaled = batches(data, dtype=dtype)
    for iteration in (0, 3):
        x0, _ = scaled.at(iteration)
        values = data.values[scaled.indices(iteration)].astype(np.float32)
        expected = values * np.float32(2) / np.float32(maximum) - np.float32(1)
        assert x0.dtype == dtype
        assert np.array_equal(x0.numpy(), expected.astype(x0.numpy().dtype))


def test_points_stay_as_they_are():
    data = Dataset("points", checkerboard(50), None, (), None)
    points = batches(data)
    x0, label = points.at(1)
    assert label is None
    assert np.array_equal(x0.numpy(), data.values[points.indices(1)])


def test_classes_are_those_of_the_model(image_model):
    """Names that both have must have the same numbers; other names are not checked."""
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


def test_prefetching_gives_the_same_batches():
    """In order, across epochs, and after jumps, as in a resumed or rolled-back run."""
    plain, prefetched = (batches(images(), flip=True, label_drop=0.5) for _ in range(2))
    prefetched._rows = Prefetch(prefetched._stored)
    for iteration in (0, 1, 2, 3, 4, 5, 2, 3, 7, 7, 8):
        (x, label), (y, other) = plain.at(iteration), prefetched.at(iteration)
        assert torch.equal(x, y)
        assert torch.equal(label, other)


def test_the_next_iteration_is_prepared_while_this_one_is_used():
    calls, second = [], threading.Event()

    def rows(iteration):
        calls.append((iteration, threading.current_thread() is threading.main_thread()))
        if iteration == 1:
            second.set()
        return torch.tensor([iteration]), None

    prefetch = Prefetch(rows)
    assert prefetch(0)[0].item() == 0
    assert second.wait(timeout=60)
    assert calls == [(0, False), (1, False)]
    assert prefetch(1)[0].item() == 1
    assert [iteration for iteration, _ in calls if iteration < 2] == [0, 1]


def test_an_error_belongs_to_its_iteration_and_may_pass():
    broken = [True]

    def rows(iteration):
        if iteration == 1 and broken.pop():
            broken.append(False)
            raise OSError("no such page")
        return torch.tensor([iteration]), None

    prefetch = Prefetch(rows)
    assert prefetch(0)[0].item() == 0
    with pytest.raises(OSError, match="no such page"):
        prefetch(1)
    assert prefetch(1)[0].item() == 1


@pytest.mark.gpu
def test_a_gpu_gets_the_cpus_bits():
    device = torch.device("cuda", 0)
    for maximum in (7, 16, 41, 255):
        data = images(maximum=maximum)
        on_cpu, on_gpu = (batches(data, d, flip=True, label_drop=0.5) for d in (CPU, device))
        for iteration in (0, 1, 2, 5):
            (x, label), (y, other) = on_cpu.at(iteration), on_gpu.at(iteration)
            assert y.is_cuda
            assert torch.equal(x, y.cpu())
            assert torch.equal(label, other.cpu())
        assert all(rows.is_pinned() for rows in on_gpu._rows(6))


@pytest.mark.gpu
def test_batches_do_not_wait_on_the_gpu():
    on_gpu = batches(images(), torch.device("cuda", 0), flip=True)
    on_gpu.at(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.at(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
