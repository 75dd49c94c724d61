"""Folding of `MLPInitializer`: static linear maps, with level and label as scale and shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.engine.folding.energy import LinearMap, caster, embedded
from cdrl_fast.networks import MLPInitializer


@dataclass(frozen=True)
class FoldedPoints:
    """An `MLPInitializer` as linear maps, two of them followed by a normalisation.

    A linear map followed by GroupNorm equals a centred linear map, whose outputs have mean 0 in
    each group, divided by each group's standard deviation. torch's GroupNorm would take most of the
    module's time if groups are small.

    Attributes:
        stem, inner: weight (in, out) and bias of the first and the last linear map of the block.
        centred1, centred2: the same for the centred stem and the centred first inner map.
        norm1, norm2: weight and bias of the norms; norm2's in float64, as part of the shift.
        head: weight (in, out); there is no bias.
        mean: (width, width); c² @ mean is the mean over each entry's group.
        epsilon: of the norms.
        embedding, label, condition: float64 linear maps from level and label to scale and shift.
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
        """Return scale and shift (n, width) of the second norm, its own weight and bias included.

        They are computed in float64, so that the last bits do not depend on the batch's labels.
        """
        e, index = embedded(self.embedding, self.label, F.silu, logsnr, label)
        weight, bias = self.condition
        scale, shift = (e @ weight.mT + bias).chunk(2, dim=1)
        weight, bias = self.norm2
        scale, shift = weight * (1 + scale), bias * (1 + scale) + shift
        if index is not None:
            scale, shift = scale[index], shift[index]
        return scale.to(self.head), shift.to(self.head)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the proposal for x: (batch, dim)."""
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
    """Return the network in eval mode, folded; it shares no memory with the module.

    In float64 the folded network equals the module up to rounding.
    """
    cast, to_float64 = caster(device, dtype), caster(device, torch.float64)
    groups = network.norm1.num_groups
    size = network.norm1.num_channels // groups
    mean = torch.kron(to_float64(torch.eye(groups)), to_float64(torch.ones(size, size)) / size)

    def linear(layer: nn.Linear | nn.GroupNorm) -> LinearMap:
        return to_float64(layer.weight), to_float64(layer.bias)

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
