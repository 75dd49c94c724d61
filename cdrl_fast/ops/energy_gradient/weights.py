"""What the operation works on: a residual network's weights with everything constant folded in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Block:
    """h → shortcut(h) + conv2(act(conv1(act(h)) + row)) + bias, act being LeakyReLU.

    Attributes:
        conv1, conv2: (out, in, 3, 3), (out, out, 3, 3).
        bias: (out,), of conv2. That of conv1 is part of the row.
        shortcut, shortcut_bias: a 3×3 convolution of h, where in and out differ.
    """

    conv1: Tensor
    conv2: Tensor
    bias: Tensor
    shortcut: Tensor | None = None
    shortcut_bias: Tensor | None = None


@dataclass(frozen=True)
class ResNetWeights:
    """Weights of f(y) = Σ over space and channels of relu(h)·head, h being the last block's output.

    Attributes:
        stem, stem_bias: (width, image channels, 3, 3), (width,).
        stages: the blocks of each resolution; 2×2 average pooling stands between them.
    """

    stem: Tensor
    stem_bias: Tensor
    stages: tuple[tuple[Block, ...], ...]

    @property
    def blocks(self) -> list[Block]:
        """All blocks in order."""
        return [block for stage in self.stages for block in stage]

    @property
    def row_sizes(self) -> list[int]:
        """Entries that each block takes of a row."""
        return [len(block.bias) for block in self.blocks]

    @property
    def multiple(self) -> int:
        """What an image's height and width must be multiples of."""
        return int(2 ** (len(self.stages) - 1))

    def check_size(self, where: str, height: int, width: int) -> None:
        """Raises ValueError unless images of that size can be halved between all stages."""
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise ValueError(
                f"{where}: height and width must be multiples of {self.multiple}, got {height} "
                f"and {width}"
            )

    def tensors(self) -> Iterator[Tensor]:
        """All weights, in the order in which kernels take them."""
        yield from (self.stem, self.stem_bias)
        for block in self.blocks:
            yield from (block.conv1, block.conv2, block.bias)
            if block.shortcut is not None and block.shortcut_bias is not None:
                yield from (block.shortcut, block.shortcut_bias)
