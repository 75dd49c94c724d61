"""Conversions of images: from PIL to arrays of one shape, and from a model's range to bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast.data.dataset import Dataset, require
from cdrl_fast.errors import DataError

if TYPE_CHECKING:  # imported on use: the library imports without Pillow
    from PIL import Image

_GREY_MODES = ("1", "L", "LA", "La")


def as_bytes(images: Tensor) -> Tensor:
    """Return round(127.5 (x + 1)) of images in [-1, 1] as uint8; values outside are clamped."""
    return ((images.double() + 1.0) * 127.5).round().clamp(0, 255).byte()


def decoded(
    sources: Sequence[tuple[str, Callable[[], Image.Image]]], size: int | None
) -> NDArray[np.uint8]:
    """Return named images as uint8 (n, C, size, size), where C is 1 if all are grey, else 3."""
    images: list[NDArray[np.uint8]] = []
    for name, open_image in sources:
        try:
            with open_image() as image:
                width, height = image.size
                side = size or (images[0].shape[-1] if images else width)
                images.append(_pixels(image, side))
        except Exception as error:  # a damaged file makes a decoder raise almost anything
            raise DataError(
                f"{name}: cannot be read as an image ({error}); replace or remove it"
            ) from error
        require(
            size is not None or width == height == side,
            f"{name}: is {width}x{height} pixels, expected {side}x{side}; images that are not "
            "all squares of one size need image_size",
        )
    channels = max(len(pixels) for pixels in images)
    return np.stack([np.broadcast_to(x, (channels, *x.shape[1:])) for x in images])


def _pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating point, which have no fixed range")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit pixels at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    square: NDArray[np.uint8] = np.asarray(ImageOps.fit(image, (size, size)))
    return square[None] if square.ndim == 2 else square.transpose(2, 0, 1)


def resized(data: Dataset, size: int) -> Dataset:
    """Return the data set with its images cropped to the centre and resized to ``size``."""
    from PIL import Image, ImageOps

    require(data.is_images, f"{data.name}: holds points, not images; leave image_size out")
    if data.sample_shape[1:] == (size, size):
        return data
    values = data.values
    if data.maximum != 255:
        # Interpolated values need the finer scale, and must not overshoot the maximum.
        values = np.rint(values * (255 / (data.maximum or 255))).astype(np.uint8)
    planes = values.reshape(-1, *values.shape[2:])
    fitted = [np.asarray(ImageOps.fit(Image.fromarray(x), (size, size))) for x in planes]
    stacked = np.stack(fitted).reshape(*values.shape[:2], size, size)
    return replace(data, values=stacked, maximum=255)
