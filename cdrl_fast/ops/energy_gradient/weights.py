"""What the operation works on: a residual network's weights with everything constant folded in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.ops.layout import check_dense

Form = tuple[object, ...]


@dataclass(frozen=True)
class Block:
    """h → shortcut(h) + conv2(act(conv1(act(h)) + row)) + bias, act being LeakyReLU.

    Attributes:
        conv1, conv2: (out, in, 3, 3), (out, out, 3, 3).
        bias: (out,), of conv2. That of conv1 is part of the row.
        shortcut, shortcut_bias: a 3×3 convolution of h, (out, in, 3, 3) and (out,), where in and
            out differ.
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
        stages: the blocks of each resolution, equally many, whose channels are a multiple of the
            stem's; 2×2 average pooling stands between resolutions.
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

    @property
    def multipliers(self) -> list[int]:
        """Channels of each stage as multiples of the stem's."""
        return [len(stage[0].bias) // len(self.stem) for stage in self.stages]

    @property
    def form(self) -> Form:
        """All that weights which may take the place of these have in common with them."""
        stem = self.stem
        return *stem.shape, *self.multipliers, len(self.stages[0]), stem.dtype, stem.device

    def check(self, where: str, form: Form | None = None) -> None:
        """Raises unless all is as said above, and of that form if one is given."""
        if self.stem.dim() != 4 or self.stem.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{where}: stem must be (width, image channels, 3, 3) in float32 or float64, got "
                f"{tuple(self.stem.shape)} in {self.stem.dtype}"
            )
        counts = [len(stage) for stage in self.stages]
        if not counts or len(set(counts)) > 1 or counts[0] < 1:
            raise ValueError(
                f"{where}: stages must have equally many blocks, one or more, got {counts}"
            )
        self._check_tensors(where)
        if form is not None and form != self.form:
            raise ValueError(f"{where}: weights must be like those before, {form}, got {self.form}")

    def _check_tensors(self, where: str) -> None:
        dtype, device = self.stem.dtype, self.stem.device

        def check(name: str, tensor: Tensor, *shape: int) -> None:
            check_dense(where, name, tensor, shape, dtype, device)

        width, image_channels = self.stem.shape[:2]
        check("stem", self.stem, width, image_channels, 3, 3)
        check("stem_bias", self.stem_bias, width)
        ins = width
        for i, stage in enumerate(self.stages):
            outs = max(1, self.multipliers[i]) * width
            for block in stage:
                check("conv1", block.conv1, outs, ins, 3, 3)
                check("conv2", block.conv2, outs, outs, 3, 3)
                check("bias", block.bias, outs)
                shortcut, bias = block.shortcut, block.shortcut_bias
                if (shortcut is not None) != (ins != outs) or (shortcut is None) != (bias is None):
                    raise ValueError(
                        f"{where}: a block must have shortcut and shortcut_bias just where its "
                        f"channels change, here from {ins} to {outs}"
                    )
                if shortcut is not None and bias is not None:
                    check("shortcut", shortcut, outs, ins, 3, 3)
                    check("shortcut_bias", bias, outs)
                ins = outs

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
