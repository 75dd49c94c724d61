"""Forward and backward pass of a residual energy network on a GPU, as a list of launches.

The native backend computes a gradient in one call; here each layer is a launch of its own. Nothing
waits for the device or allocates after the first call for a batch, so a CUDA graph can capture it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.engine.terms import for_batch, summed
from cdrl_fast.ops.conv3x3 import conv3x3
from cdrl_fast.ops.energy_gradient import Block, ResNetWeights
from cdrl_fast.ops.head import head as head_operation
from cdrl_fast.ops.layout import SLOPE, sum_dtype
from cdrl_fast.ops.pool import pool, spread
from cdrl_fast.ops.sign_bits import WORD
from cdrl_fast.ops.stem import stem
from cdrl_fast.ops.stem_gradient import stem_gradient, stem_langevin_
from cdrl_fast.precision import Precision

SPARE_BITS = 6
"""Exponent below which float16 gradients start: they may grow 1,000 times and shrink 10⁶ times."""


@dataclass(frozen=True)
class LevelMaps:
    """Inputs that depend on level, labels and weights alone, in one piece of memory.

    The rows of a linear combination's terms follow each other in each view; see `stacked`.

    Attributes:
        flat: all numbers: each block's rows, then the head's, then ``unit``.
        rows: for each block a view (terms or terms·batch, channels).
        head: a view likewise, multiplied by the terms' weights and divided by ``unit``.
        unit: (1,), the power of two by which the operations' energies and gradients are divided.
        terms: number of terms.
    """

    flat: Tensor
    rows: tuple[Tensor, ...]
    head: Tensor
    unit: Tensor
    terms: int = 1


@dataclass(frozen=True)
class _Stage:
    """Blocks of one resolution, with weights in the layout of the kernels."""

    height: int
    width: int
    blocks: tuple[Block, ...]

    def shape(self, batch: int, channels: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch's activations."""
        return batch, self.height, self.width, channels


def level_maps(
    weights: ResNetWeights, rows: Tensor, head: Tensor, precision: Precision, *, terms: int = 1
) -> LevelMaps:
    """Return the rows and head of `EnergyGradient` in the layout of the passes.

    Args:
        weights: of the network.
        rows, head: (terms or terms·batch, …), `stacked`.
        precision: of the passes; float16 gets a ``unit``, so that its gradients stay in range.
        terms: number of terms.
    """
    dtype = precision.state
    if terms > 1 and len(rows) != len(head):
        batch = (len(rows) if len(head) == terms else len(head)) // terms
        rows, head = (for_batch(part, terms, batch) for part in (rows, head))
    parts = [_padded(part, dtype) for part in torch.split(rows, weights.row_sizes, dim=1)]
    unit = head.new_ones(1, dtype=dtype)
    if precision.network == torch.float16:
        largest = head.abs().amax().clamp_min(2.0**-20)
        unit = torch.exp2(torch.ceil(torch.log2(largest)) - SPARE_BITS).to(dtype).reshape(1)
    parts.append(_padded(head, dtype) / unit)
    flat = torch.cat([*(part.flatten() for part in parts), unit])
    views, offset = [], 0
    for part in parts:
        views.append(flat[offset : offset + part.numel()].view(part.shape))
        offset += part.numel()
    return LevelMaps(flat, tuple(views[:-1]), views[-1], flat[-1:], terms)


class ResNetPasses:
    """The energy f(y; rows, head) of a folded network and its gradient, on the operations for GPUs.

    Args:
        weights: as for `EnergyGradient`; copied, with channels padded to a multiple of 32.
        height, width: of the images; multiples of ``weights.multiple``.
        precision: `Precision.network` is the dtype of activations and weights. Sums are float32
            (float64 with float64).
        backend: of the operations: "triton", "reference", or "auto".

    Raises:
        ValueError: the weights do not fit each other, or not the image size.
        BackendUnavailable: the backend is not available.

    Source: the network of Zhu et al., ICLR 2024.
    """

    def __init__(
        self,
        weights: ResNetWeights,
        height: int,
        width: int,
        *,
        precision: Precision,
        backend: str = "auto",
    ) -> None:
        weights.check("ResNetPasses")
        weights.check_size("ResNetPasses", height, width)
        self._form = weights.form
        self._size, self._dtype, self._backend = (height, width), precision.network, backend
        self._fp32_precision = precision.fp32_precision
        self._buffers: dict[str, Tensor] = {}
        self._stages, self._stem, self._stem_bias = self._packed(weights)

    def load(self, weights: ResNetWeights) -> None:
        """Copy other weights of the same form into the same memory, which a graph may read."""
        weights.check("ResNetPasses", self._form)
        for old, new in zip(self.weights(), _tensors(*self._packed(weights)), strict=True):
            old.copy_(new)

    def weights(self) -> list[Tensor]:
        """Return all weights in the kernels' layout, in the memory that `load` overwrites."""
        return _tensors(self._stages, self._stem, self._stem_bias)

    def buffers(self) -> list[Tensor]:
        """Return the memory between launches, as large as the largest batch has needed."""
        return list(self._buffers.values())

    def value(self, y: Tensor, level_maps: LevelMaps) -> Tensor:
        """Return f(y): (batch,)."""
        level_maps = self._for_batch(level_maps, len(y))
        a = self._forward(y, level_maps, keep=False)
        energy = head_operation(a, level_maps.head, backend=self._backend)
        return summed(energy, level_maps.terms) * level_maps.unit

    def value_and_gradient(
        self, y: Tensor, level_maps: LevelMaps, *, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return f(y) and ∇f(y) for y (batch, image channels, height, width); ∇f into ``out``."""
        energy, g = self._to_stem(y, level_maps)
        terms = level_maps.terms
        gradient = stem_gradient(g, self._stem, terms=terms, out=out, backend=self._backend)
        return summed(energy, terms) * level_maps.unit, gradient.mul_(level_maps.unit)

    def step_(
        self, y: Tensor, level_maps: LevelMaps, anchor: Tensor | None, **options: Any
    ) -> Tensor:
        """Take a Langevin step of y in place along ∇f / unit; ``options`` as `stem_langevin_`.

        ``drift`` must include the factor `LevelMaps.unit`. The step is part of the stem's gradient
        kernel, so the gradient is never stored.
        """
        _, g = self._to_stem(y, level_maps)
        terms = level_maps.terms
        return stem_langevin_(
            y, g, self._stem, anchor, terms=terms, backend=self._backend, **options
        )

    def working_memory(self, batch: int) -> int:
        """Return the bytes that a gradient takes for a batch, besides arguments and weights.

        ``batch`` counts states: a linear combination has one per sample and term. The rows that it
        repeats per sample come on top.
        """
        size = torch.empty((), dtype=self._dtype).element_size()
        total, sign_integers = 0, 0
        for stage in self._stages:
            pixels = batch * stage.height * stage.width
            first, last = stage.blocks[0].conv1.shape[1], stage.blocks[-1].bias.shape[1]
            total += 2 * pixels * last * size
            if stage.blocks[0].shortcut is not None:
                total += 2 * pixels * first * size
            channels = sum(sum(block.conv1.shape[1:]) for block in stage.blocks)
            sign_integers += pixels * channels // WORD
        return total + 4 * sign_integers

    def _packed(self, weights: ResNetWeights) -> tuple[list[_Stage], Tensor, Tensor]:
        """Return stages, stem and the stem's bias in the layout of the kernels."""
        stages = [self._stage(i, stage) for i, stage in enumerate(weights.stages)]
        stem_weight = _taps(weights.stem, self._dtype, pad_in=False)
        return stages, stem_weight, _padded(weights.stem_bias, sum_dtype(self._dtype))

    def _stage(self, index: int, blocks: Sequence[Block]) -> _Stage:
        height, width = (side >> index for side in self._size)
        return _Stage(height, width, tuple(self._block(block) for block in blocks))

    def _block(self, block: Block) -> Block:
        dtype, shortcut, bias = self._dtype, block.shortcut, block.shortcut_bias
        return Block(
            conv1=_taps(block.conv1, dtype),
            conv2=_taps(block.conv2, dtype),
            bias=_padded(block.bias, sum_dtype(dtype))[None],
            shortcut=None if shortcut is None else _taps(shortcut, dtype),
            shortcut_bias=None if bias is None else _padded(bias, sum_dtype(dtype))[None],
        )

    def _buffer(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the buffer of a name; its memory changes only when it must grow."""
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            dtype = self._dtype if dtype is None else dtype
            buffer = torch.empty(count, dtype=dtype, device=self._stem.device)
            self._buffers[name] = buffer
        return buffer[:count].view(shape)

    def _for_batch(self, level_maps: LevelMaps, batch: int) -> LevelMaps:
        """Return maps with one row per sample and term, as several terms need."""
        terms, flat = level_maps.terms, level_maps.flat
        if terms == 1 or len(level_maps.head) == terms * batch:
            return level_maps
        widths = [part.shape[1] for part in (*level_maps.rows, level_maps.head)]
        buffer = self._buffer("rows", (sum(widths) * terms * batch,), flat.dtype)
        views: list[Tensor] = []
        start = 0
        # One copy serves all consecutive blocks of one width.
        for width, group in groupby(widths):
            blocks = len(list(group))
            stop = start + blocks * terms * width
            repeated = buffer[start * batch : stop * batch].view(blocks, terms, batch, width)
            repeated.copy_(flat[start:stop].view(blocks, terms, 1, width))
            views += repeated.flatten(1, 2).unbind()
            start = stop
        return replace(level_maps, rows=tuple(views[:-1]), head=views[-1])

    def _signs(self, stage: int, name: str, batch: int, channels: int) -> Tensor:
        pixels = self._stages[stage].height * self._stages[stage].width
        shape = (channels // WORD, batch * pixels)
        return self._buffer(f"signs {stage} {name}", shape, torch.int32)

    def _convolve(self, x: Tensor, weight: Tensor, **rest: Any) -> Tensor:
        return conv3x3(
            x, weight, input_precision=self._fp32_precision, backend=self._backend, **rest
        )

    def _forward(self, y: Tensor, level_maps: LevelMaps, *, keep: bool) -> Tensor:
        """Return the last block's output as leaky(h); ``keep`` stores all activations' signs."""
        copies, rows = level_maps.terms, iter(level_maps.rows)
        batch = copies * y.shape[0]
        a = y
        for i, stage in enumerate(self._stages):
            first = stage.blocks[0].conv1.shape[1]
            signs = self._signs(i, "0", batch, first) if keep else None
            into = "in" if stage.blocks[0].shortcut is not None else "a"
            entry = self._buffer(f"{into} {i}", stage.shape(batch, first))
            raw = None
            if stage.blocks[0].shortcut is not None:
                raw = self._buffer(f"raw {i}", entry.shape)
            if i == 0:
                options: dict[str, Any] = {"signs": signs, "backend": self._backend}
                stem(y, self._stem, self._stem_bias, copies=copies, out=entry, **options)
                if raw is not None:
                    raw.copy_(F.leaky_relu(entry, 1 / SLOPE))  # the inverse
            else:
                pool(a, out=entry, signs=signs, mean=raw, backend=self._backend)
            a = entry
            for j, block in enumerate(stage.blocks):
                is_last = j + 1 == len(stage.blocks)
                a = self._forward_block(
                    i, j, block, a, raw, next(rows), keep=keep, keep_output=keep and not is_last
                )
                raw = None
        return a

    def _forward_block(
        self,
        i: int,
        j: int,
        block: Block,
        a: Tensor,
        raw: Tensor | None,
        row: Tensor,
        *,
        keep: bool,
        keep_output: bool,
    ) -> Tensor:
        """Return leaky(h') for a = leaky(h), in a's memory unless there is a shortcut.

        ``raw`` is h, which a shortcut reads. ``keep`` and ``keep_output`` store the signs of the
        hidden activations and of h'.
        """
        batch, channels = a.shape[0], block.bias.shape[1]
        shape = self._stages[i].shape(batch, channels)
        hidden = self._buffer(f"u {i}", shape)
        signs = self._signs(i, f"{j} hidden", batch, channels) if keep else None
        self._convolve(a, block.conv1, row=row, activate=True, signs_out=signs, out=hidden)
        residual = a
        if block.shortcut is not None:
            assert raw is not None
            residual = self._buffer(f"a {i}", shape)
            self._convolve(raw, block.shortcut, row=block.shortcut_bias, out=residual)
        return self._convolve(
            hidden,
            block.conv2,
            row=block.bias,
            residual=residual,
            residual_activated=raw is None,
            activate=True,
            signs_out=self._signs(i, f"{j + 1}", batch, channels) if keep_output else None,
            out=residual,
        )

    def _to_stem(self, y: Tensor, level_maps: LevelMaps) -> tuple[Tensor, Tensor]:
        """Return each term's energies and gradient by the stem's output, divided by `unit`."""
        level_maps = self._for_batch(level_maps, len(y))
        a = self._forward(y, level_maps, keep=True)
        batch, last = a.shape[0], len(self._stages) - 1
        # The backward pass reuses the forward pass's buffers once they have been read.
        g = self._buffer(f"u {last}", a.shape)
        energy = head_operation(a, level_maps.head, gradient=g, backend=self._backend)
        for i in range(last, -1, -1):
            stage = self._stages[i]
            for j in range(len(stage.blocks) - 1, -1, -1):
                g = self._backward_block(i, j, stage.blocks[j], g)
            if i:
                below = self._stages[i - 1].shape(batch, g.shape[3])
                g = spread(g, out=self._buffer(f"u {i - 1}", below), backend=self._backend)
        return energy, g

    def _backward_block(self, i: int, j: int, block: Block, g: Tensor) -> Tensor:
        """Return the gradient by h, from g by h'; in g if there is no shortcut."""
        batch, (_, before, channels) = g.shape[0], block.conv1.shape
        hidden = self._signs(i, f"{j} hidden", batch, channels)
        inner = self._buffer(f"a {i}", g.shape)
        self._convolve(g, block.conv2, transposed=True, signs=hidden, out=inner)
        residual = g
        if block.shortcut is not None:
            residual = self._buffer(f"raw {i}", self._stages[i].shape(batch, before))
            self._convolve(g, block.shortcut, transposed=True, out=residual)
        signs = self._signs(i, f"{j}", batch, before)
        return self._convolve(
            inner,
            block.conv1,
            transposed=True,
            signs=signs,
            residual=residual,
            out=residual,
        )


def _tensors(stages: Sequence[_Stage], *rest: Tensor) -> list[Tensor]:
    tensors = list(rest)
    for stage in stages:
        for b in stage.blocks:
            tensors += [b.conv1, b.conv2, b.bias]
            tensors += [t for t in (b.shortcut, b.shortcut_bias) if t is not None]
    return tensors


def _padded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor with zeros appended to its last dimension, up to a multiple of 32."""
    return F.pad(tensor.to(dtype), (0, -tensor.shape[-1] % WORD)).contiguous()


def _taps(weight: Tensor, dtype: torch.dtype, *, pad_in: bool = True) -> Tensor:
    """Return a weight (out, in, 3, 3) as (9, in, out), channels padded with zeros."""
    outs, ins = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, ins, outs)
    more = -ins % WORD if pad_in else 0
    return F.pad(taps.to(dtype), (0, -outs % WORD, 0, more)).contiguous()
