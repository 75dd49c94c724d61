"""The sources of data sets: published files, image folders and installed packages."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdrl_fast._lazy import optional_module
from cdrl_fast.data.dataset import Dataset, labelled, require
from cdrl_fast.data.files import map_npy, read_bytes, read_npz
from cdrl_fast.data.imagenet import imagenet32
from cdrl_fast.data.images import decoded, resized
from cdrl_fast.data.points import checkerboard
from cdrl_fast.errors import DataError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_CIFAR10_CLASSES: tuple[str, ...] = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_NPZ_ADVICE = (
    "save it again, images as uint8, labels as integers and classes as strings, never as objects"
)


class _Request(NamedTuple):
    """The arguments of ``load_data``; ``location`` is the part of ``spec`` after the colon."""

    spec: str
    location: str
    split: str
    image_size: int | None

    @property
    def path(self) -> Path:
        return Path(self.location).expanduser()


def load_data(spec: str, *, image_size: int | None = None, split: str = "train") -> Dataset:
    """Read a data set from its one-line description.

    Args:
        spec: one of

            - ``digits``: scikit-learn's 1,797 digits of 8x8 pixels with values 0 … 16;
            - ``checkerboard``: 50,000 points from ``checkerboard``;
            - ``idx:FOLDER``: files with MNIST's names, gzipped or not; labels are optional;
            - ``folder:PATH``: png, jpg, bmp, webp and gif (first frame) images; each subfolder is
              a class, in sorted order; without subfolders there are no labels. Transparency is
              dropped; the images are RGB unless all are greyscale;
            - ``npz:FILE``: ``images``, uint8 of shape (n, H, W), (n, H, W, C) or (n, C, H, W) with
              C 1 or 3; optional ``labels``, integers from 0; optional ``classes``, strings;
            - ``npy:FILE``: uint8 images of shape (n, H, W) or (n, C, H, W), memory-mapped, so that
              they may be larger than the memory; optional labels, integers from 0, in
              ``STEM-labels.npy`` next to ``STEM.npy``. Splitting or resizing copies the remaining
              images into memory;
            - ``cifar10:FOLDER``: the binary version of CIFAR-10;
            - ``imagenet32:FOLDER``: the published files of ImageNet at 32×32 pixels, pickles or
              npz;
            - ``hub:NAME``: a Hugging Face data set; its first image column and first class label
              column are used.
        image_size: the height and width of the images: the shorter side is resized to it, with
            antialiasing, and the centre is kept. None keeps the stored size; all images of
            ``folder:`` and ``hub:`` must then be squares of one size. Resizing sets ``maximum`` to
            255.
        split: ``train`` or ``test`` for ``idx:``, ``cifar10:`` and ``imagenet32:`` (its validation
            images), the name of any split for ``hub:``; the other sources have only ``train``.

    Returns:
        The data set, named ``spec``. Classes without a name in the source are called
        ``"0"``, ``"1"``, … up to the largest label of the split.

    Raises:
        DataError: ``spec`` or ``split`` is unknown, or a file is missing, damaged or has the wrong
            shape.
        ValueError: ``image_size`` is not positive.
        ImportError: the source needs a package that is not installed.

    Examples:
        >>> from cdrl_fast.data import load_data
        >>> train, held_out = load_data("digits").split(0.2)
        >>> len(train), len(held_out)
        (1438, 359)
    """
    kind, _, location = spec.partition(":")
    source = _SOURCES.get(kind)
    if source is None or (":" in source.syntax) != (":" in spec) or spec.endswith(":"):
        known = ", ".join(source.syntax for source in _SOURCES.values())
        raise DataError(f"unknown data {spec!r}; expected one of {known}")
    if source.splits and split not in source.splits:
        raise DataError(
            f"{spec}: has no split {split!r}, only {' and '.join(source.splits)}; "
            "use Dataset.split to hold out samples"
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    data = source.read(_Request(spec, location, split, image_size))
    return data if image_size is None else resized(data, image_size)


def _digits(request: _Request) -> Dataset:
    digits = optional_module("sklearn.datasets", "scikit-learn", "demo").load_digits()
    images = np.asarray(digits.images).astype(np.uint8)[:, None]
    labels = np.asarray(digits.target).astype(np.int64) + 1
    return Dataset(request.spec, images, labels, tuple("0123456789"), maximum=16)


def _points(request: _Request) -> Dataset:
    return Dataset(request.spec, checkerboard(50_000), None, (), None)


def _idx(request: _Request) -> Dataset:
    stem = request.path / {"train": "train", "test": "t10k"}[request.split]
    images_file, labels_file = _idx_file(f"{stem}-images", 3), _idx_file(f"{stem}-labels", 1)
    images = _idx_array(images_file, 3)[:, None]
    labels = _idx_array(labels_file, 1) if labels_file.exists() else None
    return labelled(request.spec, images, labels, (), labels_file)


def _idx_file(stem: str, axes: int) -> Path:
    """Return the file with any of the usual names, or the most usual name if none exists."""
    names = [f"{stem}{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    return next((Path(name) for name in names if Path(name).is_file()), Path(names[0]))


def _idx_array(path: Path, axes: int) -> NDArray[np.uint8]:
    content = read_bytes(path)
    magic, header = bytes([0, 0, 8, axes]), 4 + 4 * axes
    require(
        content[:4] == magic,
        f"{path}: expected an IDX file of bytes with {axes} axes, which begins {magic.hex()}, "
        f"got {content[:4].hex() or 'an empty file'}",
    )
    require(len(content) >= header, f"{path}: truncated in its header; download it again")
    shape = struct.unpack(f">{axes}I", content[4:header])
    excess = len(content) - header - math.prod(shape)
    require(
        excess == 0,
        f"{path}: {'truncated' if excess < 0 else 'trailing bytes'}: the header says {shape}, "
        f"and the file has {abs(excess)} bytes too {'few' if excess < 0 else 'many'}",
    )
    return np.frombuffer(content, np.uint8)[header:].reshape(shape)


def _cifar10(request: _Request) -> Dataset:
    inner = request.path / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else request.path
    numbered = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names = numbered if request.split == "train" else ["test_batch.bin"]
    parts = [_cifar10_records(folder / name) for name in names]
    classes, meta = _CIFAR10_CLASSES, folder / "batches.meta.txt"
    if meta.is_file():
        classes = tuple(read_bytes(meta).decode(errors="replace").split())
        require(len(classes) == 10, f"{meta}: expected 10 class names, got {len(classes)}")
    records = np.concatenate(parts)
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return labelled(request.spec, images, records[:, 0], classes, folder)


def _cifar10_records(path: Path) -> NDArray[np.uint8]:
    content = read_bytes(path)
    require(
        len(content) > 0 and len(content) % _CIFAR10_RECORD == 0,
        f"{path}: expected records of {_CIFAR10_RECORD} bytes, got {len(content)} bytes in all; "
        "download the binary version again",
    )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR10_RECORD)
    high = records[:, 0].max()
    require(high < 10, f"{path}: labels must be from 0 to 9, got {high}")
    return records


def _imagenet32(request: _Request) -> Dataset:
    return imagenet32(request.spec, request.path, request.split)


def _npz(request: _Request) -> Dataset:
    path = request.path
    arrays = read_npz(path, ("images", "labels", "classes"), _NPZ_ADVICE)
    require("images" in arrays, f"{path}: has no array 'images'; save the pixels as images=…")
    images, labels = _channels_first(arrays["images"], path), arrays.get("labels")
    classes = arrays.get("classes")
    if classes is None:
        return labelled(request.spec, images, labels, (), path)
    require(labels is not None, f"{path}: has 'classes' but no 'labels'")
    require(
        classes.dtype.kind == "U" and classes.ndim == 1 and classes.size > 0,
        f"{path}: 'classes' must be a list of strings, got {classes.dtype} of {classes.shape}",
    )
    return labelled(request.spec, images, labels, tuple(classes.tolist()), path)


def _npy(request: _Request) -> Dataset:
    path = request.path
    images = map_npy(path)
    require(
        images.dtype == np.uint8
        and (images.ndim == 3 or (images.ndim == 4 and images.shape[1] in (1, 3))),
        f"{path}: expected uint8 of shape (n, H, W), (n, 1, H, W) or (n, 3, H, W), got "
        f"{images.dtype} of {images.shape}; channels come before height and width",
    )
    labels_file = path.with_name(f"{path.stem}-labels.npy")
    labels = map_npy(labels_file) if labels_file.is_file() else None
    return labelled(request.spec, images[:, None] if images.ndim == 3 else images, labels, (), path)


def _channels_first(images: NDArray[Any], path: Path) -> NDArray[Any]:
    require(
        images.dtype == np.uint8 and images.ndim in (3, 4),
        f"{path}: 'images' must be uint8 of 3 or 4 axes, got {images.dtype} of {images.shape}",
    )
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    require(
        first != last,
        f"{path}: 'images' has shape {images.shape}, {'ambiguous' if first else 'no channels'}; "
        "exactly one of axes 1 and 3 must have length 1 or 3; grey images may be (n, H, W)",
    )
    return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _folder(request: _Request) -> Dataset:
    folders, files = _listing(request.path)
    require(
        not (folders and files),
        f"{request.path}: contains images (such as {''.join(x.name for x in files[:1])}) next to "
        "folders; move the images into the folders of their classes, or remove the folders",
    )
    labels: list[int] = []
    for label, folder in enumerate(folders):
        subfolders, class_files = _listing(folder)
        require(not subfolders, f"{folder}: a class must contain only images, but has folders")
        require(bool(class_files), f"{folder}: holds no images ({' '.join(_IMAGE_SUFFIXES)})")
        files += class_files
        labels += [label] * len(class_files)
    require(bool(files), f"{request.path}: holds no images ({' '.join(_IMAGE_SUFFIXES)})")
    from PIL import Image

    images = decoded([(str(file), partial(Image.open, file)) for file in files], request.image_size)
    classes = tuple(folder.name for folder in folders)
    data = labelled(request.spec, images, labels if folders else None, classes, request.path)
    return replace(data, files=tuple(str(file.relative_to(request.path)) for file in files))


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the images in a folder, each sorted, without hidden ones."""
    require(folder.is_dir(), f"{folder}: no such folder; check the path")
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error}); check its permissions") from error
    folders = [entry for entry in entries if entry.is_dir()]
    return folders, [x for x in entries if x.suffix.lower() in _IMAGE_SUFFIXES and x.is_file()]


def _hub(request: _Request) -> Dataset:
    spec, hub = request.spec, optional_module("datasets", "datasets", "datasets")
    try:
        table = hub.load_dataset(request.location, split=request.split)
    except Exception as error:  # the package raises its own errors and those of the network
        raise DataError(
            f"{spec}: cannot load split {request.split!r} ({error}); check the name, the split "
            "and the connection"
        ) from error
    features = table.features
    image = next((name for name in features if isinstance(features[name], hub.Image)), "")
    label = next((name for name in features if isinstance(features[name], hub.ClassLabel)), "")
    require(bool(image), f"{spec}: no image column among {list(features)}")
    require(len(table) > 0, f"{spec}: split {request.split!r} is empty")
    rows = table.select_columns([image])
    named = [(f"{spec} row {i}", lambda i=i: rows[i][image]) for i in range(len(rows))]
    images = decoded(named, request.image_size)
    # Test splits hide their labels as -1 or null.
    labels = [-1 if x is None else x for x in table[label]] if label else []
    if all(x == -1 for x in labels):
        return Dataset(spec, images, None, ())
    names = tuple(features[label].names)
    return labelled(spec, images, labels, names, f"{spec} column {label!r}")


class _Source(NamedTuple):
    syntax: str
    splits: tuple[str, ...]  # empty: any name, which the source itself checks
    read: Callable[[_Request], Dataset]


_SOURCES = {
    "digits": _Source("digits", ("train",), _digits),
    "checkerboard": _Source("checkerboard", ("train",), _points),
    "idx": _Source("idx:FOLDER", ("train", "test"), _idx),
    "folder": _Source("folder:PATH", ("train",), _folder),
    "npz": _Source("npz:FILE", ("train",), _npz),
    "npy": _Source("npy:FILE", ("train",), _npy),
    "cifar10": _Source("cifar10:FOLDER", ("train", "test"), _cifar10),
    "imagenet32": _Source("imagenet32:FOLDER", ("train", "test"), _imagenet32),
    "hub": _Source("hub:NAME", (), _hub),
}
