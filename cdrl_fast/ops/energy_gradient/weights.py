"""Weights of a residual network, into which all constants are folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl_fast.ops.layout import check_dense

Form = tuple[object, ...]


@dataclass(frozen=True)
class Block:
    """A residual block h → shortcut(h) + conv2(act(conv1(act(h)) + row)) + bias; act is LeakyReLU.

    Attributes:
        conv1, conv2: (out, in, 3, 3), (out, out, 3, 3).
        bias: bias of conv2, (out,). The bias of conv1 is part of the row.
        shortcut, shortcut_bias: 3×3 convolution of h, (out, in, 3, 3) and (out,); None if in and
            out are equal.
    """

    conv1: Tensor
    conv2: Tensor
    bias: Tensor
    shortcut: Tensor | None = None
    shortcut_bias: Tensor | None = None


@dataclass(frozen=True)
class ResNetWeights:
    """Weights of f(y) = Σ relu(h)·head over pixels and channels; h is the last block's output.

    Attributes:
        stem, stem_bias: (width, image channels, 3, 3), (width,).
        stages: blocks by resolution, with 2×2 average pooling between resolutions. All stages have
            the same number of blocks, and their channels are multiples of the stem's.
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
        """Number of columns of ``rows`` per block."""
        return [len(block.bias) for block in self.blocks]

    @property
    def multiple(self) -> int:
        """Divisor of valid image heights and widths."""
        return int(2 ** (len(self.stages) - 1))

    @property
    def multipliers(self) -> list[int]:
        """Channels of each stage as multiples of the stem's."""
        return [len(stage[0].bias) // len(self.stem) for stage in self.stages]

    @property
    def form(self) -> Form:
        """Shape, dtype and device of the network; weights of equal form can replace each other."""
        stem = self.stem
        return *stem.shape, *self.multipliers, len(self.stages[0]), stem.dtype, stem.device

    def check(self, operation: str, form: Form | None = None) -> None:
        """Raise ValueError or TypeError unless all tensors fit together.

        Args:
            operation: name for messages.
            form: required form, if any.
        """
        if self.stem.dim() != 4 or self.stem.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{operation}: stem must be (width, image channels, 3, 3) in float32 or float64, "
                f"got {tuple(self.stem.shape)} in {self.stem.dtype}"
            )
        counts = [len(stage) for stage in self.stages]
        if not counts or len(set(counts)) > 1 or counts[0] < 1:
            raise ValueError(
                f"{operation}: stages must have the same number of blocks, one or more, "
                f"got {counts}"
            )
        self._check_tensors(operation)
        if form is not None and form != self.form:
            raise ValueError(f"{operation}: weights must have the form {form}, got {self.form}")

    def _check_tensors(self, operation: str) -> None:
        dtype, device = self.stem.dtype, self.stem.device

        def check(name: str, tensor: Tensor, *shape: int) -> None:
            check_dense(operation, name, tensor, shape, dtype, device)

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
                        f"{operation}: a block must have shortcut and shortcut_bias if and only if "
                        f"its channels change, here from {ins} to {outs}"
                    )
                if shortcut is not None and bias is not None:
                    check("shortcut", shortcut, outs, ins, 3, 3)
                    check("shortcut_bias", bias, outs)
                ins = outs

    def check_size(self, operation: str, height: int, width: int) -> None:
        """Raise ValueError unless images of this size can be halved between all stages."""
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise ValueError(
                f"{operation}: height and width must be multiples of {self.multiple}, got {height} "
                f"and {width}"
            )

    def tensors(self) -> Iterator[Tensor]:
        """Yield all weights, in the order of the C++ kernel's arguments."""
        yield from (self.stem, self.stem_bias)
        for block in self.blocks:
            yield from (block.conv1, block.conv2, block.bias)
            if block.shortcut is not None and block.shortcut_bias is not None:
                yield from (block.shortcut, block.shortcut_bias)
