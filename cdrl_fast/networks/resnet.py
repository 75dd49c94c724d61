"""Energy network for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.networks.kernels import convolve
from cdrl_fast.networks.layers import (
    Classes,
    Conditional,
    leaky,
    level_embedding,
    one_hot,
    without_autocast,
)
from cdrl_fast.networks.spectral_norm import SpectralConv2d, SpectralLinear


class EnergyEmbedding(nn.Module):
    """Embedding e of level and label, (1 or batch, 4·width), in both energy networks."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.linear1 = SpectralLinear(width, 4 * width)
        self.linear2 = SpectralLinear(4 * width, 4 * width)
        self.label = SpectralLinear(classes + 1, 4 * width) if classes else None

    def forward(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return the embedding of levels and labels, each (1,) or (batch,)."""
        embedded: Tensor = self.linear2(leaky(self.linear1(level_embedding(logsnr, self.width))))
        if self.label is not None and label is not None:
            embedded = embedded + self.label(one_hot(label, self.classes, embedded.dtype))
        return embedded


class ResNetBlock(nn.Module):
    """Residual block x → shortcut(x) + gain · conv2(act(conv1(act(x)) + act(level(act(e)))))."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, out_channels, 1, 1))
        self.conv1 = SpectralConv2d(in_channels, out_channels)
        self.conv2 = SpectralConv2d(out_channels, out_channels)
        self.level = SpectralLinear(embedding, out_channels)
        self.shortcut = (
            SpectralConv2d(in_channels, out_channels) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """Return the block's output, (batch, out_channels, height, width)."""
        with without_autocast(self.level.weight):
            row = leaky(self.level(activated_embedding))[:, :, None, None]
        h = convolve(self.conv1, leaky, x)
        h = h + row.to(h.dtype)
        h = convolve(self.conv2, leaky, h)
        h = h * self.gain.to(h.dtype)
        return h + (x if self.shortcut is None else self.shortcut(x))


class ResNetEnergy(Conditional):
    """Scalar energy network f(y, λ_{t-1}, label) for images.

    The log-density of ``y`` is f / s_t², up to a constant (`NoiseSchedule.level`). Pre-activation
    residual blocks with spectral norm; 2×2 average pooling between resolutions; the head is the dot
    product of the spatial sum of ReLU features with a linear map of the level embedding.

    Args:
        image_channels: channels per image.
        width: channels at the first resolution; even, at least 4.
        multipliers: channels of each resolution, as multiples of ``width``.
        blocks: residual blocks per resolution.
        classes: 0 (unconditional), the number of classes, or their names.

    Shapes: ``y`` (batch, image_channels, H, W), H and W divisible by 2^(len(multipliers) - 1);
    ``logsnr`` and ``label`` (batch,) or (1,); returns (batch,). Inputs have the parameters' dtype,
    the label an integer one; label 0 or None is "no label".

    Raises:
        ValueError: sizes that are not positive, an odd width, or class names that are not distinct;
            on a call, shapes that do not fit, or a label for a network without classes.
        TypeError: on a call, a label whose dtype is not an integer one.

    Source: Zhu et al., ICLR 2024, with the defaults of its CIFAR-10 model (34.8 M parameters).

    Examples:
        >>> import torch
        >>> from cdrl_fast import ResNetEnergy
        >>> energy = ResNetEnergy(1, width=16, multipliers=(1, 2), blocks=1, classes=10)
        >>> energy(torch.zeros(4, 1, 8, 8), torch.zeros(1), torch.tensor([1, 2, 3, 0])).shape
        torch.Size([4])
    """

    def __init__(
        self,
        image_channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 8,
        classes: Classes = 0,
    ) -> None:
        super().__init__()
        if min(image_channels, blocks, *multipliers) < 1 or width < 4 or width % 2:
            raise ValueError(
                "ResNetEnergy: expected positive image_channels, multipliers and blocks and an "
                f"even width of at least 4, got {image_channels}, {tuple(multipliers)}, {blocks}, "
                f"{width}"
            )
        self._store_config(
            classes,
            image_channels=image_channels,
            width=width,
            multipliers=tuple(multipliers),
            blocks=blocks,
        )
        self.embedding = EnergyEmbedding(width, self.num_classes)
        self.stem = SpectralConv2d(image_channels, width)
        stages, channels = [], width
        for multiplier in multipliers:
            stage = []
            for _ in range(blocks):
                stage.append(ResNetBlock(channels, multiplier * width, 4 * width))
                channels = multiplier * width
            stages.append(nn.ModuleList(stage))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(4 * width, channels, bias=False)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return f(y, logsnr, label), (batch,); shapes as in the class."""
        label = self._check_label(y, logsnr, label)
        step = 2 ** (len(self.stages) - 1)
        if (
            y.dim() != 4
            or y.shape[1] != self.stem.in_channels
            or y.shape[2] % step
            or y.shape[3] % step
        ):
            raise ValueError(
                f"ResNetEnergy: expected images (batch, {self.stem.in_channels}, H, W) with H "
                f"and W divisible by {step}, got {tuple(y.shape)}"
            )
        with without_autocast(self.head.weight):
            activated = leaky(self.embedding(logsnr, label))
        h = self.stem(y)
        for index, stage in enumerate(self.stages):
            if index:
                h = F.avg_pool2d(h, 2)
            for block in stage:  # type: ignore[attr-defined]
                h = self._checkpointed("blocks", block, h, activated)
        with without_autocast(self.head.weight):
            pooled = F.relu(h).sum(dim=(2, 3), dtype=activated.dtype)
            return (pooled * self.head(activated)).sum(dim=1)
