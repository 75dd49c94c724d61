"""The `Dataset` class, and the checks that the readers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdrl_fast.errors import DataError

Indices = Sequence[int] | NDArray[np.integer[Any]] | torch.Tensor

# More classes than this means that the labels are identifiers, not classes.
_MAX_CLASSES = 100_000


def require(condition: bool | np.bool_, message: str) -> None:
    """Raise DataError with ``message`` unless ``condition`` is true."""
    if not condition:
        raise DataError(message)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in memory or in a memory-mapped file, with or without class labels.

    Attributes:
        name: the name of the data set in messages; ``load_data`` uses its ``spec``.
        values: images, uint8 of shape (n, C, H, W), or points, float32 of shape (n, 2).
        labels: int64 of shape (n,), each in 1 … len(classes), or None. 0 means "no label" to a
            model, so no sample has it.
        classes: the names of classes 1, 2, …; empty without labels.
        maximum: the pixel value that maps to +1, where 0 maps to -1; None for points, which are
            not scaled.
        files: the path of each image within the folder it was read from; None for other sources.

    Raises:
        DataError: the data set is empty, or the dtype, shape or range of an array is not as
            described above.

    Examples:
        >>> import numpy as np
        >>> from cdrl_fast.data import Dataset
        >>> pixels = np.zeros((10, 3, 32, 32), dtype=np.uint8)
        >>> images, labels = Dataset("black", pixels, labels=None, classes=()).batch(range(4))
        >>> images.shape, float(images.max())
        (torch.Size([4, 3, 32, 32]), -1.0)
    """

    name: str
    values: NDArray[Any]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    maximum: int | None = 255
    files: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        name, values, labels, maximum = self.name, self.values, self.labels, self.maximum
        require(values.size > 0, f"{name}: empty, values have shape {values.shape}")
        if values.dtype == np.uint8 and values.ndim == 4:
            # uint8 never exceeds 255, so a mapped file need not be read to check it.
            peak = 255 if maximum == 255 else max(1, int(values.max()))
            require(
                maximum is not None and peak <= maximum <= 255,
                f"{name}: expected maximum from {peak}, the largest pixel, to 255, got {maximum}",
            )
        else:
            require(
                values.dtype == np.float32 and values.shape[1:] == (2,),
                f"{name}: expected images (uint8, (n, C, H, W)) or points (float32, (n, 2)), "
                f"got {values.dtype} of shape {values.shape}",
            )
            require(maximum is None, f"{name}: points need maximum=None, got {maximum}")
            require(np.isfinite(values).all(), f"{name}: some points are not finite")
        if labels is None:
            require(not self.classes, f"{name}: {len(self.classes)} classes but no labels")
            return
        require(
            labels.dtype == np.int64 and labels.shape == (len(values),),
            f"{name}: expected labels int64 of shape ({len(values)},), got {labels.dtype} of "
            f"shape {labels.shape}",
        )
        require(
            labels.min() >= 1 and labels.max() <= len(self.classes),
            f"{name}: expected labels from 1 to {len(self.classes)}, the number of classes, got "
            f"{labels.min()} to {labels.max()}",
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_images(self) -> bool:
        """Whether the samples are images rather than points."""
        return self.values.ndim == 4

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (2,)."""
        return self.values.shape[1:]

    def batch(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the samples at ``indices``, scaled for a model, and their labels.

        Args:
            indices: integers of shape (b,); negative ones count from the end, repeats are allowed.

        Returns:
            The samples, float32 of shape (b, *sample_shape), images scaled to
            ``2 * value / maximum - 1`` and points unchanged; and the labels, int64 of shape (b,),
            or None without labels.

        Raises:
            TypeError: ``indices`` is not a flat sequence of integers.
            IndexError: an index is out of range.
        """
        samples, labels = self.stored(indices)
        return self.scaled(samples), labels

    def stored(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the samples at ``indices`` unscaled, in the dtype of ``values``, and their labels.

        `batch` is this and then `scaled`; between the two, a caller can move the smaller stored
        samples to a device.
        """
        index = _flat_index(indices)
        labels = None if self.labels is None else torch.from_numpy(self.labels[index])
        return torch.from_numpy(self.values[index]), labels

    def scaled(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the samples that `stored` returned as float32 for a model.

        Every device gives the same bits.
        """
        if self.maximum is None:
            return samples
        # Dividing, rather than multiplying by 2 / maximum, makes the largest value exactly 1. The
        # divisor is a tensor because CUDA multiplies by the inverse of a Python number.
        maximum = torch.full((), self.maximum, dtype=torch.float32, device=samples.device)
        return samples.float().mul_(2).div_(maximum).sub_(1)

    def subset(self, indices: Indices) -> Dataset:
        """Return the data set of the samples at ``indices``, in that order, with the same classes.

        Raises:
            TypeError: ``indices`` is not a flat sequence of integers.
            IndexError: an index is out of range.
        """
        index = _flat_index(indices)
        labels = None if self.labels is None else self.labels[index]
        files = None if self.files is None else tuple(self.files[i] for i in index)
        return replace(self, values=self.values[index], labels=labels, files=files)

    def split(self, held_out: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split off a random share of the samples, the same one for the same ``seed``.

        Args:
            held_out: the share to split off, between 0 and 1 (both excluded).
            seed: the seed of the permutation that picks the samples.

        Returns:
            The remaining samples and the held-out samples, both in the original order.

        Raises:
            ValueError: ``held_out`` is not between 0 and 1.
            DataError: one side would be empty.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {held_out}")
        count = round(len(self) * held_out)
        if count in (0, len(self)):
            raise DataError(
                f"{self.name}: held_out={held_out} of {len(self)} samples leaves one side empty"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def _flat_index(indices: Indices) -> NDArray[np.int64]:
    index = np.asarray(indices)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise TypeError(
            f"indices must be a flat sequence of integers, got {index.dtype} of shape {index.shape}"
        )
    return index.astype(np.int64)


def labelled(
    name: str, images: NDArray[Any], labels: Any, classes: tuple[str, ...], source: object
) -> Dataset:
    """Return the data set of ``images`` and their labels, which count from 0; None: no labels.

    Messages about the labels name ``source``.
    """
    if labels is None:
        return Dataset(name, images, None, ())
    labels = np.asarray(labels)
    require(
        labels.dtype.kind in "iu" and labels.shape == images.shape[:1],
        f"{source}: expected {len(images)} integer labels, one per image, got {labels.dtype} of "
        f"shape {labels.shape}",
    )
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    count = len(classes) or min(high + 1, _MAX_CLASSES)
    require(
        low >= 0 and high < count,
        f"{source}: labels must be from 0 to {count - 1}, got {low} to {high}",
    )
    names = classes or tuple(str(label) for label in range(count))
    return Dataset(name, images, labels.astype(np.int64) + 1, names)
