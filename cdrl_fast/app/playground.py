"""The computations behind the page of ``cdrl-fast app``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cdrl_fast.data.images import decoded
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.densities import Density, conditional, mixture, negated, product
from cdrl_fast.report import curve_figure, image_grid
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.request import SampleOptions
from cdrl_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID, CELL = 480, 112
"""Largest width, in pixels, of a grid of samples and of one of its cells."""
CANVAS = 256
"""Largest width, in pixels, of the canvas, to which a model's images are enlarged."""
MINIMUM_COVERAGE = 0.25
"""A pixel is filled where paint covers at least this share of it."""
BOTH, EITHER, NOT = "both", "either", "first, not second"
KINDS = (BOTH, EITHER, NOT)


def grid(images: Tensor) -> Image.Image:
    """Return images in a grid of at most `GRID` pixels, enlarged without smoothing."""
    columns = int(np.ceil(np.sqrt(len(images))))
    cell = min(CELL, GRID // columns)
    return image_grid(images, columns=columns, scale=max(1, cell // images.shape[-1]))


@dataclass(frozen=True)
class Film:
    """States of one run of chains: x_T, the state after each level, and the samples.

    Attributes:
        states: (T + 1, n, C, H, W), from the noise x_T to the denoised samples.
    """

    states: Tensor

    @property
    def levels(self) -> int:
        """Number of noise levels T."""
        return len(self.states) - 1

    def picture(self, done: int) -> Image.Image:
        """Return the grid of images after ``done`` levels, 0 to T."""
        return grid(self.states[done])

    def caption(self, done: int) -> str:
        """Return the caption of `picture`."""
        t = self.levels - done
        ends = {0: f"x_{t}, noise", self.levels: "x_0, the samples"}
        return ends.get(done, f"x_{t}, after level {t + 1}")


@dataclass(frozen=True)
class ImageScore:
    """Log-density of one image, compared with those of samples of the model.

    Attributes:
        log_density: of the image at level 1, up to a constant.
        reference: log-densities of the samples, ascending.
        image: the image (1, C, H, W) as the model sees it.
    """

    log_density: float
    reference: NDArray[np.float64]
    image: Tensor

    @property
    def percentile(self) -> float:
        """Percentage of the reference that is lower than the image's log-density."""
        return 100.0 * float((self.reference < self.log_density).mean())

    def describe(self) -> str:
        """Return the score in two sentences, as Markdown."""
        return (
            f"Log-density **{self.log_density:.1f}** at level 1, known up to a constant. "
            f"Percentile **{self.percentile:g}**: higher than that of {self.percentile:g} % of "
            f"{len(self.reference)} samples of the model."
        )

    def figure(self) -> Figure:
        """Plot the distribution function of the reference, and the image on it."""
        n = len(self.reference)
        percentiles = 100.0 * np.arange(1, n + 1) / n
        return curve_figure(
            {
                f"{n} samples of the model": (self.reference, percentiles),
                "this image": ([self.log_density], [self.percentile]),
            },
            xlabel="log-density at level 1, up to a constant",
            ylabel="percentile",
        )


class Playground:
    """A model of images, and the functions behind the page's tabs.

    Classes are numbers 1 … classes; 0 or None stands for any class.

    Args:
        model: a model of grey or colour images.
        references: number of samples of the model that `score` compares an image with.

    Raises:
        ValueError: a model of points, or of images with neither 1 nor 3 channels.
    """

    def __init__(self, model: CDRL, references: int = 200) -> None:
        if not model.is_image or model.sample_shape[0] not in (1, 3):
            raise ValueError(
                "model: expected a model of grey or colour images, got samples of shape "
                f"{model.sample_shape}; examples/checkerboard.py plots models of 2-D points"
            )
        self.model, self.references = model, references
        self._sampler = Sampler(model)

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Names and numbers of the model's classes."""
        classes = self.model.classes
        names = [str(i + 1) for i in range(classes)] if isinstance(classes, int) else classes
        return [(name, i + 1) for i, name in enumerate(names)]

    def sample(self, n: int, **options: Unpack[SampleOptions]) -> Film:
        """Draw ``n`` samples and return them with the states after each level.

        Args:
            n, options: as in `Sampler.sample`; guidance is 0 without a label.
        """
        if not options.get("label"):
            options |= {"label": None, "guidance": 0.0}
        trace = self._sampler.sample_trace(n, **options)
        # The last state of the trace is the samples before denoising.
        return Film(torch.cat([trace.states[:-1], trace.samples.cpu()[None]]))

    def draw(self, label: int | None, seed: int, index: int) -> Tensor:
        """Draw sample number ``index`` of a seed, (1, C, H, W)."""
        sample = self._sampler.sample(1, label=label or None, seed=seed, first_sample=index)
        return sample.float().cpu()

    def fit_image(self, picture: Image.Image | str | Path) -> Tensor:
        """Return a picture, or a file's, in the model's size and channels, (1, C, H, W) in [-1, 1].

        The picture's centre is cut out and resized; transparent parts become black. A picture of
        the canvas's size is averaged over the enlarged pixels, so that the result for
        ``canvas(image)`` is ``image`` in 256 shades.

        Raises:
            DataError: the file is not a picture.
        """
        name = "the picture" if isinstance(picture, Image.Image) else Path(picture).name
        channels, _, width = self.model.sample_shape

        def opened() -> Image.Image:
            image = picture if isinstance(picture, Image.Image) else Image.open(picture)
            image = _opaque(image, grey=channels == 1)
            return image.reduce(self._enlargement) if image.size == self.canvas_size else image

        pixels = torch.from_numpy(decoded([(name, opened)], width))
        return (pixels.float() / 127.5 - 1.0).expand(-1, channels, -1, -1).contiguous()

    def canvas(self, image: Tensor) -> Image.Image:
        """Return an image (1, C, H, W) enlarged to the canvas's size."""
        return image_grid(image, columns=1, scale=self._enlargement)

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Width and height of `canvas`."""
        _, height, width = self.model.sample_shape
        return width * self._enlargement, height * self._enlargement

    @property
    def _enlargement(self) -> int:
        return max(1, CANVAS // max(self.model.sample_shape[1:]))

    def complete(
        self,
        image: Tensor | None,
        layers: Sequence[Image.Image],
        *,
        n: int,
        label: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Complete an image where it was painted over.

        Args:
            image: (1, C, H, W) in [-1, 1].
            layers: layers of paint, each as large as `canvas`; opaque parts are filled.
            n: number of completions.
            label, options: as in `Sampler.inpaint`. Without a label, and with at most 16 classes,
                each completion is chosen from one candidate per class.

        Returns:
            The image with grey unknown pixels (1, C, H, W), and completions (n, C, H, W), which
            equal the image where nothing was painted.

        Raises:
            ValueError: no image or no paint; and as `Sampler.inpaint`.
        """
        if image is None:
            raise ValueError("image: draw a sample or upload an image first")
        height, width = image.shape[-2:]
        known = ~painted_mask(layers, (height, width))
        if known.all():
            raise ValueError("mask: paint over the part of the image to fill")
        classes = self.model.num_classes
        completions = self._sampler.inpaint(
            image,
            known,
            label=label or None,
            samples=n,
            candidates=classes if not label and 0 < classes <= 16 else 1,
            **options,
        )
        return image.masked_fill(~known, 0.0), completions.float().cpu()

    def compose(
        self,
        first: int,
        second: int,
        kind: str,
        *,
        weight: float = 0.5,
        share: float = 0.5,
        n: int = 16,
        **options: Unpack[SampleOptions],
    ) -> Tensor:
        """Draw samples from the combined densities of two classes, (n, C, H, W).

        Args:
            first, second: class numbers.
            kind: "both" for the product of the densities, "either" for their mixture, "first, not
                second" for the first with the second negated.
            weight: weight of the negated class.
            share: share of the first class in a mixture, 0 to 1.
            n, options: as in `Sampler.sample`.

        Raises:
            ValueError: an unknown kind; and as `product`, `mixture`, `negated`, `Sampler.sample`.
        """
        density = self._density(first, second, kind, weight, share)
        samples = Sampler(density).sample(n, **options)
        return samples.float().cpu()

    def _density(self, first: int, second: int, kind: str, weight: float, share: float) -> Density:
        a, b = conditional(self.model, first), conditional(self.model, second)
        if kind == BOTH:
            return product(a, b)
        if kind == EITHER:
            return mixture(a, b, weights=(share, 1.0 - share))
        if kind == NOT:
            return negated(a, b, weight)
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")

    def score(self, picture: Image.Image | str | Path) -> ImageScore:
        """Compare a picture's log-density at level 1 with those of samples of the model."""
        image = self.fit_image(picture)
        log_density = float(self._sampler.log_density(image)[0])
        return ImageScore(log_density, self.reference, image)

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """Log-densities of samples of the model, cycled over its classes, ascending."""
        label = cycled_classes(self.model, self.references)
        samples = self._sampler.sample(self.references, label=label)
        return self._sampler.log_density(samples).double().sort().values.cpu().numpy()


def painted_mask(layers: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Return which pixels of a smaller image layers of paint cover: bool (height, width)."""
    coverage = np.zeros(size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        layer_coverage = np.asarray(alpha.resize(size[::-1], Image.Resampling.BOX)) / 255.0
        coverage = np.maximum(coverage, layer_coverage)
    return torch.from_numpy(coverage >= MINIMUM_COVERAGE)


def _opaque(image: Image.Image, grey: bool) -> Image.Image:
    """Return a picture without transparency, in grey or RGB; one of 16 bits is unchanged."""
    if image.mode.startswith(("I", "F")):
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, "black")
        # The info contains the orientation that a camera has noted.
        black.info = dict(image.info)
        black.alpha_composite(image)
        image = black
    return image.convert("L" if grey else "RGB")
