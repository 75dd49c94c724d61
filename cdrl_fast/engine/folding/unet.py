"""Folding of `UNetInitializer`: its weights, and rows from level and label for its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.engine.folding.energy import Cast, LinearMap, caster, embedded
from cdrl_fast.networks import UNetInitializer
from cdrl_fast.networks.unet import Attention as AttentionModule
from cdrl_fast.networks.unet import UNetBlock
from cdrl_fast.ops.unet_forward import Affine, Attention, Block, Layer, UNetWeights


@dataclass(frozen=True)
class UNetLevelInputs:
    """A function from level and label to all blocks' scales and shifts; see `LevelInputs`.

    Attributes:
        maps: weight and bias of the embedding's two linear maps.
        label: weight (4·width, classes + 1) and bias of the label's linear map, or None.
        blocks: weight (R, 4·width) and bias (R,) of all blocks' linear maps, one below the other.
    """

    maps: tuple[LinearMap, LinearMap]
    label: LinearMap | None
    blocks: LinearMap

    def __call__(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return rows (n, R), float64; arguments and n as `LevelInputs`."""
        e, index = embedded(self.maps, self.label, F.silu, logsnr, label)
        weight, bias = self.blocks
        rows = e @ weight.mT + bias
        return rows if index is None else rows[index]


@dataclass(frozen=True)
class FoldedUNet:
    """A `UNetInitializer` as static weights."""

    weights: UNetWeights
    level_inputs: UNetLevelInputs

    def at(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return rows (n, R) of `UNetForward`; see `UNetLevelInputs`."""
        return self.level_inputs(logsnr, label).to(self.weights.stem.weight.dtype)


@torch.no_grad()
def fold_unet(network: UNetInitializer, device: torch.device, dtype: torch.dtype) -> FoldedUNet:
    """Return the network in eval mode as static weights, which share no memory with it."""
    cast, config = caster(device, dtype), network.config
    weights = UNetWeights(
        image_size=config["image_size"],
        multipliers=config["multipliers"],
        blocks=config["blocks"],
        attention=config["attention"],
        stem=_affine(network.stem, cast),
        downs=tuple(_layers(stage, cast) for stage in network.downs),
        middle=_layers(network.middle, cast),
        ups=tuple(_layers(stage, cast) for stage in network.ups),
        norm=_affine(network.norm, cast),
        head=_affine(network.head, cast),
    )
    to_float64 = caster(device, torch.float64)

    def linear(layer: nn.Linear) -> LinearMap:
        return to_float64(layer.weight), to_float64(layer.bias)

    stages = (*network.downs, network.middle, *network.ups)
    parts = [linear(b.condition) for s in stages for b in _modules(s) if isinstance(b, UNetBlock)]
    level_inputs = UNetLevelInputs(
        maps=(linear(network.embed1), linear(network.embed2)),
        label=None if network.label is None else linear(network.label),
        blocks=(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
    )
    return FoldedUNet(weights, level_inputs)


def _modules(stage: nn.Module) -> Iterable[nn.Module]:
    return stage.children()


def _layers(stage: nn.Module, cast: Cast) -> tuple[Layer, ...]:
    return tuple(_layer(module, cast) for module in _modules(stage))


def _layer(module: nn.Module, cast: Cast) -> Layer:
    if isinstance(module, AttentionModule):
        parts = (module.norm, module.qkv, module.out)
        return Attention(*(_affine(part, cast) for part in parts))
    assert isinstance(module, UNetBlock)
    return Block(
        norm1=_affine(module.norm1, cast),
        conv1=_affine(module.conv1, cast),
        norm2=_affine(module.norm2, cast),
        conv2=_affine(module.conv2, cast),
        shortcut=None if module.shortcut is None else _affine(module.shortcut, cast),
        resample=module.resample,
    )


def _affine(layer: nn.Conv2d | nn.GroupNorm, cast: Cast) -> Affine:
    return Affine(cast(layer.weight), cast(layer.bias))
