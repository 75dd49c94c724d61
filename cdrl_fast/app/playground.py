"""What the page of `cdrl-fast app` does with a model, without the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
from cdrl_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID, CELL = 480, 112
"""Pixels that a grid of samples is wide at most, and one of its cells."""
CANVAS = 256
"""Pixels that the canvas to draw on is wide at most; a model's image is enlarged to about that."""
FILLED = 0.25
"""A pixel is filled where the brush covers at least that share of it."""
BOTH, EITHER, NOT = "both", "either", "first, not second"
KINDS = (BOTH, EITHER, NOT)


def grid(images: Tensor) -> Image.Image:
    """Images in a grid, enlarged without smoothing to about the same width, however many."""
    columns = int(np.ceil(np.sqrt(len(images))))
    cell = min(CELL, GRID // columns)
    return image_grid(images, columns=columns, scale=max(1, cell // images.shape[-1]))


@dataclass(frozen=True)
class Film:
    """One run of the chain: x_T, the state after each level, and the samples in the end.

    Attributes:
        states: (T + 1, n, C, H, W), the noise x_T first; the samples last, which are denoised.
    """

    states: Tensor

    @property
    def levels(self) -> int:
        """T."""
        return len(self.states) - 1

    def picture(self, done: int) -> Image.Image:
        """The grid after so many levels, 0 to T."""
        return grid(self.states[done])

    def caption(self, done: int) -> str:
        """What `picture` shows."""
        t = self.levels - done
        told = {0: f"x_{t}, noise", self.levels: "x_0, the samples"}
        return told.get(done, f"x_{t}, after level {t + 1}")


@dataclass(frozen=True)
class Verdict:
    """The log-density of one image among a reference's.

    Attributes:
        value: at level 1, up to a constant.
        reference: ascending.
        image: the image (1, C, H, W) as the model sees it.
    """

    value: float
    reference: NDArray[np.float64]
    image: Tensor

    @property
    def percentile(self) -> float:
        """How many of the reference in a hundred are lower."""
        return 100.0 * float((self.reference < self.value).mean())

    def words(self) -> str:
        """The verdict in two sentences, as Markdown."""
        return (
            f"Log-density **{self.value:.1f}** at level 1, known up to a constant. "
            f"Percentile **{self.percentile:g}**: higher than that of {self.percentile:g} % of "
            f"{len(self.reference)} samples that the model drew itself, once, its classes in turn."
        )

    def figure(self) -> Figure:
        """The reference's distribution function, and where the image is."""
        n = len(self.reference)
        reached = 100.0 * np.arange(1, n + 1) / n
        return curve_figure(
            {
                f"{n} samples of the model": (self.reference, reached),
                "this image": ([self.value], [self.percentile]),
            },
            xlabel="log-density at level 1, up to a constant",
            ylabel="percentile",
        )


class Playground:
    """A model of images, and what can be tried with it.

    Classes are numbers, 1 … classes, and 0 or None is any.

    Args:
        model: a model of grey or colour images.
        references: number of the model's own samples that `score` compares with.

    Raises:
        ValueError: a model of points, or of images with neither 1 nor 3 channels.
    """

    def __init__(self, model: CDRL, references: int = 200) -> None:
        if not model.is_image or model.sample_shape[0] not in (1, 3):
            raise ValueError(
                "app: expected a model of grey or colour images, got one of samples of shape "
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

    def sample(self, label: int | None, guidance: float, steps: int, n: int, seed: int) -> Film:
        """Draws ``n`` samples and keeps the states in between; arguments as `Sampler.sample`'s.

        Guidance is of a class: any has none.
        """
        samples, trace = self._sampler.sample(
            n,
            label=label or None,
            guidance=guidance if label else 0.0,
            steps=steps,
            seed=seed,
            trace="levels",
        )
        # The last state is the same samples before they are denoised.
        return Film(torch.cat([trace.states[:-1], samples.cpu()[None]]))

    def draw(self, label: int | None, seed: int, index: int) -> Tensor:
        """Sample number ``index`` of a seed, (1, C, H, W)."""
        found = self._sampler.sample(1, label=label or None, seed=seed, first_sample=index)
        return found.float().cpu()

    def fitted(self, picture: Image.Image | str | Path) -> Tensor:
        """A picture or its file as the model's kind of image, (1, C, H, W) in [-1, 1].

        The centre is cut out, transparent parts are black. One as large as `canvas` is reduced to
        means of its cells, so that of `canvas` comes the image itself, in 256 shades.

        Raises:
            DataError: a file that is not a picture.
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
        """An image (1, C, H, W) enlarged, to paint on."""
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
        label: int | None,
        n: int,
        passes: int,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Completes an image where it was painted over.

        Args:
            image: (1, C, H, W) in [-1, 1].
            layers: what was painted, each as large as `canvas`: opaque is to be filled.
            label, passes, seed: as in `Sampler.inpaint`. Without a label each completion is the
                best of one of each class, where there are at most 16 classes.
            n: number of completions.

        Returns:
            The image with grey in place of what is unknown (1, C, H, W), and completions
            (n, C, H, W), which equal the image where nothing was painted.

        Raises:
            ValueError: no image, nothing painted; and as `Sampler.inpaint`.
        """
        if image is None:
            raise ValueError("image: draw a sample or upload an image first")
        height, width = image.shape[-2:]
        known = ~painted(layers, (height, width))
        if known.all():
            raise ValueError("mask: paint over the part of the image that is to be filled")
        classes = self.model.num_classes
        found = self._sampler.inpaint(
            image,
            known,
            label=label or None,
            samples=n,
            passes=passes,
            candidates=classes if not label and 0 < classes <= 16 else 1,
            seed=seed,
        )
        return image.masked_fill(~known, 0.0), found.float().cpu()

    def compose(
        self,
        first: int,
        second: int,
        kind: str,
        *,
        weight: float = 0.5,
        share: float = 0.5,
        correctors: int = 0,
        n: int = 16,
        seed: int = 0,
    ) -> Tensor:
        """Samples of two classes' combined densities, (n, C, H, W).

        Args:
            first, second: class numbers.
            kind: "both", their product; "either", their mixture; "first, not second", the first
                without the negated second.
            weight: of the negated class. share: of the first class in a mixture, 0 to 1.
            correctors, n, seed: as in `Sampler.sample`.

        Raises:
            ValueError: an unknown kind; and as `product`, `mixture`, `negated`, `Sampler.sample`.
        """
        density = self._density(first, second, kind, weight, share)
        found = Sampler(density).sample(n, correctors=correctors, seed=seed)
        return found.float().cpu()

    def _density(self, first: int, second: int, kind: str, weight: float, share: float) -> Density:
        a, b = conditional(self.model, first), conditional(self.model, second)
        if kind == BOTH:
            return product(a, b)
        if kind == EITHER:
            return mixture(a, b, weights=(share, 1.0 - share))
        if kind == NOT:
            return negated(a, b, weight)
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")

    def score(self, picture: Image.Image | str | Path) -> Verdict:
        """The log-density of a picture among those of samples of the model, at level 1."""
        image = self.fitted(picture)
        value = float(self._sampler.log_density(image)[0])
        return Verdict(value, self.reference, image)

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """Log-densities of samples of the model, classes in turn, ascending."""
        label = cycled_classes(self.model, self.references)
        samples = self._sampler.sample(self.references, label=label)
        return self._sampler.log_density(samples).double().sort().values.cpu().numpy()


def painted(layers: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Where layers of paint cover pixels of a smaller image: bool (height, width)."""
    covered = np.zeros(size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        share = np.asarray(alpha.resize(size[::-1], Image.Resampling.BOX)) / 255.0
        covered = np.maximum(covered, share)
    return torch.from_numpy(covered >= FILLED)


def _opaque(image: Image.Image, grey: bool) -> Image.Image:
    """A picture without transparency, grey if the model is; of 16 bits it stays as it is."""
    if image.mode.startswith(("I", "F")):
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, "black")
        # A copy keeps the orientation that a camera has noted.
        black.info = dict(image.info)
        black.alpha_composite(image)
        image = black
    return image.convert("L" if grey else "RGB")
