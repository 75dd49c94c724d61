"""``cdrl-fast inpaint``: images with missing parts from files, their completions to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdrl_fast import report
from cdrl_fast.cli.options import device_of, labels_of, one_plan
from cdrl_fast.data import load_data
from cdrl_fast.errors import DataError
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.precision import PrecisionName
from cdrl_fast.sampling.inpainting import ObservationNoise
from cdrl_fast.sampling.masks import known_mask
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.storage.folder import write_npz


@dataclass(frozen=True)
class Inpaint:
    """Complete images of which a part is missing."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    images: str = "digits"
    """A folder of pictures, or data as for train."""
    mask: str = "lower-half"
    """What to fill: lower-half, random:P, or a picture that is white there."""
    out: Path = Path("completions")
    """Folder of the completions: an overview, each as a picture, and all values as .npz."""
    n: int = 8
    """Of the images, the first n."""
    samples: int = 5
    """Completions of each image."""
    label: tuple[str, ...] = ()
    """A class name or number, or n of them."""
    guidance: float = 0.0
    """Weight of classifier-free guidance towards the label."""
    steps: tuple[str, ...] = ()
    """Langevin steps a level: one number, one for each level 1 … T, or tuned."""
    noise: ObservationNoise = "shared"
    """Of the known pixels: one noise a completion, or a fresh one a level."""
    passes: int = 1
    """How often each level is gone through; more follow the known pixels more closely."""
    candidates: int = 1
    """Completions drawn for each one kept: as many as classes, or a multiple, where no label is
    given."""
    correctors: int = 0
    """Extra Langevin steps a level."""
    seed: int = 0
    """Of the noise, and of a random mask."""
    batch_size: int | None = None
    """Chains at a time, for less memory; by default all."""
    precision: PrecisionName = "auto"
    """Of the networks, as in Sampler; auto: bf16 where the processor multiplies it, else fp32."""
    device: str = "auto"
    """A torch device; auto: a GPU where there is one."""

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(device_of(self.device))
        images, known = load_masked(self.images, self.mask, model, self.n, seed=self.seed)
        completions = Sampler(model, precision=self.precision).inpaint(
            images,
            known,
            seed=self.seed,
            steps=one_plan(self.steps),
            label=labels_of(self.label, model),
            guidance=self.guidance,
            samples=self.samples,
            batch_size=self.batch_size,
            noise=self.noise,
            passes=self.passes,
            candidates=self.candidates,
            correctors=self.correctors,
            progress=True,
        )
        write_completions(images, known, completions.cpu(), self.out)
        print(f"{self.out}: {self.samples} completions of {len(images)} images")


def load_masked(
    source: str, mask: str, model: CDRL, n: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images for a model to complete.

    Args:
        source: a folder of pictures, or what `load_data` takes; images get the model's size.
        mask, seed: as in `known_mask`.
        model: a model of images.
        n: the first so many, or all if there are fewer.

    Returns:
        float32 (n, C, H, W) in [-1, 1], and bool (n, 1, H, W), True where a pixel is kept.

    Raises:
        ValueError: a model of points, n below 1, a wrong mask. DataError: as `load_data`.
    """
    if not model.is_image:
        raise ValueError("inpaint: expected a model of images; in Python Sampler.inpaint takes any")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    channels, *size = model.sample_shape
    folder = Path(source).expanduser()
    spec = f"folder:{folder}" if folder.is_dir() else source
    data = load_data(spec, image_size=size[0])
    if data.sample_shape != model.sample_shape:
        raise DataError(
            f"{source}: has {data.sample_shape[0]} channels, and the model takes {channels}; "
            "convert the images"
        )
    images, _ = data.batch(torch.arange(min(n, len(data))))
    return images, known_mask(mask, len(images), (size[0], size[1]), seed=seed)


def write_completions(images: Tensor, known: Tensor, completions: Tensor, folder: Path) -> None:
    """Writes ``overview.png``, ``completions.npz`` and ``IMAGE-COMPLETION.png`` of each, from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    each = completions.reshape(len(images), -1, *images.shape[1:])
    report.completion_grid(images, known, completions).save(folder / "overview.png")
    for index in np.ndindex(*each.shape[:2]):
        name = "{:05d}-{:02d}.png".format(*index)
        report.save_image_grid(each[index][None], folder / name, scale=1)
    write_npz(folder / "completions.npz", images=images, known=known, completions=each)
