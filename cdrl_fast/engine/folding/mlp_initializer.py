"""`MLPInitializer` as static linear maps, with the conditioning as one row a level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.engine.folding.energy import LinearMap, caster, embedded
from cdrl_fast.networks import MLPInitializer


@dataclass(frozen=True)
class FoldedPoints:
    """An `MLPInitializer`: two linear maps, each normalised, between stem and head.

    A GroupNorm behind a linear map is a linear map whose outputs have mean 0 in each group, divided
    by their standard deviations, so that ``centred1`` (of the stem) and ``centred2`` (of the first
    inner map) hold those; torch's own takes most of the module's time where groups are small.

    Attributes:
        stem, inner, head: weights (in, out) and biases of what is not normalised; head has none.
        centred1, centred2: likewise.
        norm1, norm2: weight and bias of the norms; norm2's in float64, it goes into the rows.
        mean: (width, width), c² @ mean being the mean over each entry's group.
        epsilon: of the norms.
        embedding, label, condition: float64 maps from level and label to scale and shift.
    """

    stem: LinearMap
    centred1: LinearMap
    norm1: LinearMap
    centred2: LinearMap
    norm2: LinearMap
    inner: LinearMap
    head: Tensor
    mean: Tensor
    epsilon: float
    embedding: tuple[LinearMap, LinearMap]
    label: LinearMap | None
    condition: LinearMap

    def at(self, logsnr: Tensor, label: Tensor | None) -> LinearMap:
        """Scale and shift (n, width) of the second norm, its own weight and bias included.

        In float64, so that the last bits do not depend on how many labels are computed together.
        """
        e, back = embedded(self.embedding, self.label, F.silu, logsnr, label)
        weight, bias = self.condition
        scale, shift = (e @ weight.mT + bias).chunk(2, dim=1)
        weight, bias = self.norm2
        scale, shift = weight * (1 + scale), bias * (1 + scale) + shift
        if back is not None:
            scale, shift = scale[back], shift[back]
        return scale.to(self.head), shift.to(self.head)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The proposal for x: (batch, dim), like x."""
        weight, bias = self.norm1
        r = F.silu(torch.addcmul(bias, self._normalized(x, self.centred1), weight))
        r = F.silu(torch.addcmul(shift, self._normalized(r, self.centred2), scale))
        h = _linear(x, self.stem) + _linear(r, self.inner)
        return x + F.silu(h) @ self.head

    def _normalized(self, x: Tensor, centred: LinearMap) -> Tensor:
        c = _linear(x, centred)
        return c * torch.rsqrt(c.square() @ self.mean + self.epsilon)


def _linear(x: Tensor, layer: LinearMap) -> Tensor:
    weight, bias = layer
    return torch.addmm(bias, x, weight)


@torch.no_grad()
def fold_points(network: MLPInitializer, device: torch.device, dtype: torch.dtype) -> FoldedPoints:
    """The network as it is in eval mode, in tensors of its own.

    Exact: in float64 the folded network equals the module to rounding.
    """
    cast, exactly = caster(device, dtype), caster(device, torch.float64)
    groups = network.norm1.num_groups
    size = network.norm1.num_channels // groups
    mean = torch.kron(exactly(torch.eye(groups)), exactly(torch.ones(size, size)) / size)

    def linear(layer: nn.Linear | nn.GroupNorm) -> LinearMap:
        return exactly(layer.weight), exactly(layer.bias)

    def plain(layer: nn.Linear) -> LinearMap:
        return cast(layer.weight.mT), cast(layer.bias)

    def centred(layer: nn.Linear) -> LinearMap:
        weight, bias = linear(layer)
        return cast((weight - mean @ weight).mT), cast(bias - mean @ bias)

    return FoldedPoints(
        stem=plain(network.stem),
        centred1=centred(network.stem),
        norm1=(cast(network.norm1.weight), cast(network.norm1.bias)),
        centred2=centred(network.linear1),
        norm2=linear(network.norm2),
        inner=plain(network.linear2),
        head=cast(network.head.weight.mT),
        mean=cast(mean),
        epsilon=network.norm1.eps,
        embedding=(linear(network.embed1), linear(network.embed2)),
        label=None if network.label is None else linear(network.label),
        condition=linear(network.condition),
    )
