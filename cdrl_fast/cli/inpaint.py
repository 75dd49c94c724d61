"""``cdrl-fast inpaint``: complete images from files and write the completions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdrl_fast.cli.options import SamplingCommand
from cdrl_fast.errors import DataError
from cdrl_fast.sampling.request import ObservationNoise
from cdrl_fast.storage.folder import write_npz

if TYPE_CHECKING:
    from torch import Tensor

    from cdrl_fast.model.cdrl import CDRL


@dataclass(frozen=True, kw_only=True)
class Inpaint(SamplingCommand):
    """Complete images that have missing parts."""

    images: str = "digits"
    """A folder of pictures, or data as for train --data."""
    mask: str = "lower-half"
    """Pixels to fill: lower-half, random:P (a share P), or a picture, white where to fill."""
    out: Path = Path("completions")
    """Folder for an overview, one picture per completion, and all values as .npz."""
    n: int = 8
    """Number of images, from the first on."""
    samples: int = 5
    """Completions per image."""
    label: tuple[str, ...] = ()
    """One class name or number for all images, or n of them."""
    noise: ObservationNoise = "shared"
    """Noise of the known pixels: shared by all levels of a completion, or fresh at each level."""
    passes: int = 1
    """Passes through each level; more passes follow the known pixels more closely."""
    candidates: int = 1
    """Completions drawn per kept one; without --label a multiple of the number of classes."""
    seed: int = 0
    """Seed of the noise and of a random mask."""
    batch_size: int | None = None
    """Chains per batch, for less memory; by default all."""

    def run(self) -> None:
        """Complete the images, write the completions and print where they are."""
        from cdrl_fast import Sampler

        model = self.load_model()
        images, known = load_masked(self.images, self.mask, model, self.n, seed=self.seed)
        completions = Sampler(model, precision=self.precision).inpaint(
            images,
            known,
            samples=self.samples,
            noise=self.noise,
            passes=self.passes,
            candidates=self.candidates,
            **self.sample_options(model),
        )
        write_completions(images, known, completions.cpu(), self.out)
        print(f"{self.out}: {self.samples} completions of {len(images)} images")


def load_masked(
    source: str, mask: str, model: CDRL, n: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return images for a model to complete, and the mask of their known pixels.

    Args:
        source: a folder of pictures, or what `load_data` takes; images are resized to the model's
            size.
        mask, seed: as in `known_mask`.
        model: a model of images.
        n: the number of images, from the first on; all if there are fewer.

    Returns:
        float32 (n, C, H, W) in [-1, 1], and bool (n, 1, H, W), True where a pixel is known.

    Raises:
        ValueError: a model of points, n below 1, a wrong mask.
        DataError: as `load_data`, or images with other channels than the model's.
    """
    from cdrl_fast.data import load_data
    from cdrl_fast.sampling.masks import known_mask

    if not model.is_image:
        raise ValueError(
            "model: expected a model of images, got one of points; use Sampler.inpaint in Python"
        )
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    channels, *size = model.sample_shape
    folder = Path(source).expanduser()
    spec = f"folder:{folder}" if folder.is_dir() else source
    data = load_data(spec, image_size=size[0])
    if data.sample_shape != model.sample_shape:
        raise DataError(
            f"images: expected {channels} channels, as the model has, got {data.sample_shape[0]} "
            f"in {source}; convert the images"
        )
    images, _ = data.batch(range(min(n, len(data))))
    return images, known_mask(mask, len(images), (size[0], size[1]), seed=seed)


def write_completions(images: Tensor, known: Tensor, completions: Tensor, folder: Path) -> None:
    """Write ``overview.png``, ``completions.npz`` and ``IMAGE-COMPLETION.png``, counted from 0."""
    from cdrl_fast import report

    folder.mkdir(parents=True, exist_ok=True)
    by_image = completions.reshape(len(images), -1, *images.shape[1:])
    report.completion_grid(images, known, completions).save(folder / "overview.png")
    for index in np.ndindex(*by_image.shape[:2]):
        name = "{:05d}-{:02d}.png".format(*index)
        report.save_image_grid(by_image[index][None], folder / name, scale=1)
    write_npz(folder / "completions.npz", images=images, known=known, completions=by_image)
