"""Training batches: each one is a function of the seed and the iteration."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast.data import Dataset
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.ops.keys import TrainingKeys
from cdrl_fast.training.config import TrainConfig

Rows = tuple[Tensor, Tensor | None]
"""Samples and labels, as the data set stores them."""


class Prefetch:
    """A function of the iteration that is called one iteration ahead, in a thread of its own.

    Consecutive iterations are served from the thread; after a jump the caller waits for the new
    iteration. An error is raised by the call for its own iteration.
    """

    def __init__(self, function: Callable[[int], Rows]) -> None:
        self._function = function
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cdrl-batches")
        self._next: tuple[int, Future[Rows]] | None = None

    def __call__(self, iteration: int) -> Rows:
        if self._next is None or self._next[0] != iteration:
            self._next = (iteration, self._thread.submit(self._function, iteration))
        future, self._next = self._next[1], None  # after an error the next call tries again
        rows = future.result()
        self._next = (iteration + 1, self._thread.submit(self._function, iteration + 1))
        return rows


class Batches:
    """Batches of a data set that is shuffled anew for each epoch, with flips and dropped labels.

    Samples move to the device as they are stored and are scaled there. For a GPU they are copied to
    pinned memory one iteration ahead, so that neither the GPU nor the host waits for them.

    Args:
        data: the data set.
        config: batch_size, seed, flip and label_drop are read.
        labelled: whether the model takes labels.
        device, dtype: device and dtype of the batches.
        part: index and number of the equal parts into which the processes divide each batch.

    Attributes:
        start: position in the batch at which this part begins.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        *,
        labelled: bool,
        device: torch.device,
        dtype: torch.dtype,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.data, self.config, self.labelled = data, config, labelled
        self.device, self.dtype = device, dtype
        self._size = config.batch_size // part[1]
        self.start = part[0] * self._size
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))
        self._to_gpu = device.type == "cuda"
        self._rows: Callable[[int], Rows] = Prefetch(self._pinned) if self._to_gpu else self._stored

    def at(self, iteration: int) -> tuple[Tensor, Tensor | None]:
        """Return the data (batch, …) and labels of one iteration.

        Labels are int64 (batch,), some of them dropped to 0, "no label"; or None.
        """
        n, config = self._size, self.config
        keys = TrainingKeys(config.seed, iteration * config.batch_size + self.start)
        x0, label = self._rows(iteration)
        x0 = self.data.scaled(x0.to(self.device, non_blocking=self._to_gpu)).to(self.dtype)
        if config.flip:
            coin = keys.flip().randint(n, 2, device=self.device)
            x0 = torch.where(coin.bool().reshape(-1, *[1] * (x0.dim() - 1)), x0.flip(-1), x0)
        if label is None or not self.labelled:
            return x0, None
        uniform = keys.label_drop().uniform((n, 1), device=self.device)
        return x0, label.to(self.device, non_blocking=self._to_gpu).masked_fill(
            uniform[:, 0] < config.label_drop, 0
        )

    def _stored(self, iteration: int) -> Rows:
        return self.data.stored(self.indices(iteration))

    def _pinned(self, iteration: int) -> Rows:
        x0, label = self._stored(iteration)
        return x0.pin_memory(), None if label is None else label.pin_memory()

    def indices(self, iteration: int) -> NDArray[np.int64]:
        """Return the data set's indices of one iteration, int64 (batch,)."""
        size = len(self.data)
        positions = np.arange(self._size) + iteration * self.config.batch_size + self.start
        epochs, rows = positions // size, positions % size
        return np.concatenate([self._epoch(int(e))[rows[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        order = self._order  # read once: the prefetching thread may replace it
        if order[0] != epoch:
            key = np.array([self.config.seed % 2**64, epoch], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key))
            self._order = order = (epoch, generator.permutation(len(self.data)))
        return order[1]


def check_compatible(model: CDRL, data: Dataset, config: TrainConfig, processes: int) -> None:
    """Check that ``processes`` processes can train a model on a data set with this configuration.

    Raises:
        ValueError: sample shapes, classes, flip or batch_size that do not fit.
    """
    if data.sample_shape != model.sample_shape:
        raise ValueError(
            f"Trainer: expected samples of the model's shape {model.sample_shape}, got "
            f"{data.sample_shape} from {data.name!r}"
        )
    if model.num_classes and (data.labels is None or len(data.classes) > model.num_classes):
        have = "no labels" if data.labels is None else f"{len(data.classes)} classes"
        raise ValueError(
            f"Trainer: expected labels of at most {model.num_classes} classes, the model's, "
            f"got {have} from {data.name!r}"
        )
    model.check_class_names(data.classes, data.name)
    if config.flip and not model.is_image:
        raise ValueError(
            f"TrainConfig: flip needs images, got samples of shape {model.sample_shape}; set "
            "flip=False"
        )
    parts = processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"TrainConfig: expected batch_size to be a multiple of {parts} ({processes} processes "
            f"× accumulate={config.accumulate}), got {config.batch_size}"
        )
