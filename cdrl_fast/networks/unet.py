"""Initializer network for images: a U-Net that proposes where each level's chain begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.networks.kernels import Conv1x1, Conv3x3, GroupNormSilu
from cdrl_fast.networks.layers import (
    Classes,
    Conditional,
    StreamDropout,
    level_embedding,
    one_hot,
)
from cdrl_fast.networks.recompute import Recomputing

Conv = TypeVar("Conv", bound=nn.Conv2d)


class UNetBlock(Recomputing):
    """Residual block with scale-shift conditioning and, optionally, resampling.

    The branch is norm, SiLU, resampling, conv, norm · (1 + scale) + shift, SiLU, dropout, conv; the
    resampled shortcut is added. ``resample`` is "down" (average pooling), "up" (nearest) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = GroupNormSilu(in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = GroupNormSilu(out_channels)
        self.condition = nn.Linear(embedding, 2 * out_channels)
        self.dropout = StreamDropout(dropout)
        self.conv2 = zeroed(Conv3x3(out_channels, out_channels))
        self.shortcut = Conv1x1(in_channels, out_channels) if in_channels != out_channels else None

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample else x

    def _pre_conv1(self, x: Tensor) -> Tensor:
        return self._resample(self.norm1(x))

    def _pre_conv2(self, h: Tensor, row: Tensor) -> Tensor:
        return self.dropout(self.norm2(h, row))

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """Return the block's output, (batch, out_channels, height, width) after resampling."""
        # First, so that autograd takes its gradient last and stores none of it meanwhile.
        short = self._resample(x)
        if self.shortcut is not None:
            short = self.shortcut(short)
        h = self._convolve(self.conv1, self._pre_conv1, x)
        row = self.condition(activated_embedding)
        return self._convolve(self.conv2, self._pre_conv2, h, row) + short


class Attention(nn.Module):
    """Self-attention x + out(softmax(q kᵀ / √C) v) over all positions of a map; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNormSilu(channels)
        self.qkv = Conv1x1(channels, 3 * channels)
        self.out = zeroed(Conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with attention added, (batch, channels, height, width)."""
        qkv = self.qkv(self.norm(x, activate=False)).flatten(2).mT
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT
        return x + self.out(h.reshape(x.shape))


class UNetInitializer(Conditional):
    """Initializer for images: predicts m_t x_{t-1} from x_t; untrained it returns x_t.

    Args:
        image_channels: channels per image.
        image_size: height and width; decides which resolutions have attention.
        width: channels of the first convolution; even, at least 4.
        multipliers: channels of each resolution, as multiples of ``width``.
        blocks: residual blocks per resolution on the way down (one more on the way up).
        attention: sizes of the feature maps with self-attention; the middle always has it.
        dropout: probability of dropout before the second convolution of each block.
        classes: 0 (unconditional), the number of classes, or their names.

    Shapes: ``x`` (batch, image_channels, image_size, image_size); ``logsnr`` is λ_t, (batch,) or
    (1,), ``label`` likewise; returns the shape of ``x``. Inputs have the parameters' dtype, the
    label an integer one. The defaults have 3,769,795 parameters.

    Raises:
        ValueError: as `ResNetEnergy`; also a dropout outside [0, 1), or an image_size that cannot
            be halved len(multipliers) - 1 times.
        TypeError: on a call, a label whose dtype is not an integer one.

    Source: Zhu et al., ICLR 2024.

    Examples:
        >>> import torch
        >>> from cdrl_fast import UNetInitializer
        >>> initializer = UNetInitializer(1, image_size=8, width=32, multipliers=(1, 1), blocks=1)
        >>> x = torch.randn(4, 1, 8, 8)
        >>> bool((initializer.eval()(x, torch.zeros(1)) == x).all())  # untrained
        True
    """

    def __init__(
        self,
        image_channels: int = 3,
        image_size: int = 32,
        width: int = 64,
        multipliers: Sequence[int] = (1, 1, 1),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        dropout: float = 0.1,
        classes: Classes = 0,
    ) -> None:
        super().__init__()
        if min(image_channels, blocks, *multipliers) < 1 or width < 4 or width % 2:
            raise ValueError(
                "UNetInitializer: expected positive image_channels, multipliers and blocks and an "
                f"even width of at least 4, got {image_channels}, {tuple(multipliers)}, {blocks}, "
                f"{width}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"UNetInitializer: expected 0 <= dropout < 1, got {dropout}")
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"UNetInitializer: image_size {image_size} cannot be halved "
                f"{len(multipliers) - 1} times; use fewer multipliers"
            )
        self._store_config(
            classes,
            image_channels=image_channels,
            image_size=image_size,
            width=width,
            multipliers=tuple(multipliers),
            blocks=blocks,
            attention=tuple(attention),
            dropout=dropout,
        )
        self.embed1 = nn.Linear(width, 4 * width)
        self.embed2 = nn.Linear(4 * width, 4 * width)
        self.label = nn.Linear(self.num_classes + 1, 4 * width) if self.num_classes else None
        self.stem = Conv3x3(image_channels, width)
        self._build_stages([m * width for m in multipliers], blocks, tuple(attention), dropout)
        self.norm = GroupNormSilu(multipliers[0] * width)
        self.head = zeroed(Conv3x3(multipliers[0] * width, image_channels))

    def _build_stages(
        self, widths: list[int], blocks: int, attention: tuple[int, ...], dropout: float
    ) -> None:
        embedding = self.embed2.out_features
        size, channels = self.config["image_size"], self.stem.out_channels
        skips = [channels]

        def block(c_in: int, c_out: int, resample: str | None = None) -> UNetBlock:
            return UNetBlock(c_in, c_out, embedding, dropout, resample)

        downs = []
        for index, width in enumerate(widths):
            stage: list[nn.Module] = []
            for _ in range(blocks):
                stage.append(block(channels, width))
                stage.extend([Attention(width)] if size in attention else [])
                channels = width
                skips.append(width)
            if index < len(widths) - 1:
                stage.append(block(width, width, "down"))
                skips.append(width)
                size //= 2
            downs.append(nn.ModuleList(stage))
        self.downs = nn.ModuleList(downs)
        self.middle = nn.ModuleList(
            [block(channels, channels), Attention(channels), block(channels, channels)]
        )
        ups = []
        for index, width in reversed(list(enumerate(widths))):
            stage = []
            for _ in range(blocks + 1):
                stage.append(block(channels + skips.pop(), width))
                stage.extend([Attention(width)] if size in attention else [])
                channels = width
            if index:
                stage.append(block(width, width, "up"))
                size *= 2
            ups.append(nn.ModuleList(stage))
        self.ups = nn.ModuleList(ups)

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction of m_t x_{t-1} from x, logsnr and label; shapes as in the class."""
        label = self._check_label(x, logsnr, label)
        size = self.config["image_size"]
        if x.shape[1:] != (self.stem.in_channels, size, size):
            raise ValueError(
                f"UNetInitializer: expected images (batch, {self.stem.in_channels}, {size}, {size})"
                f", got {tuple(x.shape)}"
            )
        e = self.embed2(F.silu(self.embed1(level_embedding(logsnr, self.embed1.in_features))))
        if self.label is not None and label is not None:
            e = e + self.label(one_hot(label, self.num_classes, e.dtype))
        e = F.silu(e)
        h = self.stem(x)
        skips = [h]
        for stage in self.downs:
            for layer in stage:  # type: ignore[attr-defined]
                if isinstance(layer, Attention):
                    skips[-1] = h = self._checkpointed("blocks", layer, h)
                else:
                    h = self._checkpointed("blocks", layer, h, e)
                    skips.append(h)
        first, attend, second = self.middle
        h = self._checkpointed("blocks", attend, self._checkpointed("blocks", first, h, e))
        h = self._checkpointed("blocks", second, h, e)
        for stage in self.ups:
            for layer in stage:  # type: ignore[attr-defined]
                if isinstance(layer, Attention):
                    h = self._checkpointed("blocks", layer, h)
                else:
                    joined = h if layer.resample else torch.cat([h, skips.pop()], dim=1)
                    h = self._checkpointed("blocks", layer, joined, e)
        return x + self._convolve(self.head, self.norm, h)


def zeroed(conv: Conv) -> Conv:
    """Set a convolution's weights and biases to zero, so that its branch starts as 0; return it."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
