"""Folding of energy networks: what is constant along a chain is multiplied into the weights.

Spectral norms and gains go into the weights. What depends on level and label alone becomes one bias
row per block: f(y, λ, label) turns into f(y; rows, head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.networks.layers import LEAK, leaky, level_embedding
from cdrl_fast.networks.mlp import MLPBlock
from cdrl_fast.networks.resnet import EnergyEmbedding, ResNetBlock
from cdrl_fast.networks.spectral_norm import SpectralConv2d, SpectralLinear
from cdrl_fast.ops.energy_gradient import Block, ResNetWeights
from cdrl_fast.ops.mlp_chain import IDENTITY, RELU, Activation, Add, Linear, Program
from cdrl_fast.ops.mlp_chain.program import Instruction

LEAKY = Activation("leaky_relu", LEAK)
FEW_LABELS = 128
"""Up to so many labels all are embedded, which needs no wait for the device; else those in use."""
Cast = Callable[[Tensor | None], Tensor]
LinearMap = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LevelInputs:
    """A function from level and label to the rows of the energy's blocks and the embedding.

    It computes in float64, so that the last bits do not depend on the number of labels in a batch;
    each label is computed once. The embedding's sines are computed in the network's precision, as
    in the module: their argument is up to 1,000, and rounding shows.

    Attributes:
        maps: weight and bias of the embedding's two linear maps.
        label: weight (4·width, classes + 1) and bias of the label's linear map, or None.
        level: weight (R, 4·width) and bias (R,) of all blocks' linear maps, one below the other.
        bias: (R,), biases of the blocks' first convolutions.
    """

    maps: tuple[LinearMap, LinearMap]
    label: LinearMap | None
    level: LinearMap
    bias: Tensor

    def __call__(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return rows (n, R) and the activated embedding (n, 4·width).

        Args:
            logsnr: λ_{t-1}, (1,) or (batch,), in the network's precision.
            label: int64 (1,) or (batch,); 0 or None is "no label". n is the longer length.
        """
        e, index = embedded(self.maps, self.label, leaky, logsnr, label)
        weight, bias = self.level
        rows = self.bias + leaky(e @ weight.mT + bias)
        return (rows, e) if index is None else (rows[index], e[index])


def embedded(
    maps: tuple[LinearMap, LinearMap],
    label_map: LinearMap | None,
    activation: Callable[[Tensor], Tensor],
    logsnr: Tensor,
    label: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the activated embedding of levels and labels, each label once, in the maps' dtype.

    Returns:
        The embeddings (m, 4·width), and int64 (batch,), the index of each sample's embedding; None
        instead if embeddings and samples correspond.
    """
    (w1, b1), (w2, b2) = maps
    e = level_embedding(logsnr, w1.shape[1]).to(w1.dtype)
    e = activation(e @ w1.mT + b1) @ w2.mT + b2
    index = None
    if label_map is not None:
        weight, bias = label_map
        labels = logsnr.new_zeros(1, dtype=torch.long) if label is None else label.long()
        if len(logsnr) == 1 and len(labels) > 1:
            if weight.shape[1] <= FEW_LABELS:
                labels, index = torch.arange(weight.shape[1], device=labels.device), labels
            else:
                labels, index = torch.unique(labels, return_inverse=True)
        e = e + weight.mT[labels] + bias
    return activation(e), index


@dataclass(frozen=True)
class FoldedResNet:
    """A `ResNetEnergy` as static weights.

    Attributes:
        weights: of `EnergyGradient`.
        level_inputs: from level and label to rows and embedding.
        head: float64 (channels, 4·width), from the embedding to the head.
    """

    weights: ResNetWeights
    level_inputs: LevelInputs
    head: Tensor

    def at(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return rows (n, R) and head (n, channels) of `EnergyGradient`; see `LevelInputs`."""
        rows, e = self.level_inputs(logsnr, label)
        dtype = self.weights.stem.dtype
        return rows.to(dtype), (e @ self.head.mT).to(dtype)


@dataclass(frozen=True)
class FoldedMLP:
    """An `MLPEnergy` as a program, whose rows depend on level and label."""

    program: Program
    level_inputs: LevelInputs

    def at(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Return rows (n, R) of `mlp_chain_`; see `LevelInputs`."""
        return self.level_inputs(logsnr, label)[0].to(self.program.dtype)


@torch.no_grad()
def fold_resnet(network: ResNetEnergy, device: torch.device, dtype: torch.dtype) -> FoldedResNet:
    """Return the network in eval mode as static weights, which share no memory with it.

    In float64 the folded network equals the module up to rounding.
    """
    cast = caster(device, dtype)
    stages = [[b for b in stage if isinstance(b, ResNetBlock)] for stage in _modules(network)]
    blocks = [block for stage in stages for block in stage]
    weights = ResNetWeights(
        spectral(network.stem, cast),
        cast(network.stem.bias),
        tuple(tuple(_block(block, cast) for block in stage) for stage in stages),
    )
    to_float64 = caster(device, torch.float64)
    level_inputs = fold_level_inputs(
        network.embedding,
        [block.level for block in blocks],
        [block.conv1.bias for block in blocks],
        to_float64,
    )
    return FoldedResNet(weights, level_inputs, to_float64(network.head.weight))


@torch.no_grad()
def fold_mlp(network: MLPEnergy, device: torch.device, dtype: torch.dtype) -> FoldedMLP:
    """Return the network in eval mode as a program, which shares no memory with it."""
    cast = caster(device, dtype)

    def linear(
        layer: SpectralLinear,
        source: int,
        target: int,
        activation: Activation,
        gain: Tensor | None = None,
    ) -> Linear:
        weight, bias = spectral(layer, cast), cast(layer.bias)
        if gain is not None:
            gain = cast(gain).flatten()
            weight, bias = weight * gain[:, None], bias * gain
        return Linear(source, target, weight, bias, activation)

    blocks = [block for block in network.blocks if isinstance(block, MLPBlock)]
    widths, column = [network.stem.in_features, network.stem.out_features], 0
    steps: list[Instruction] = [linear(network.stem, 0, 1, IDENTITY)]
    for block in blocks:
        source, middle, target = len(widths) - 1, len(widths), len(widths) + 1
        outs = block.linear1.out_features
        widths += [outs, outs]
        row = slice(column, column := column + outs)
        steps.append(Linear(source, middle, spectral(block.linear1, cast), row, LEAKY))
        # Shortcut first, so that the kernel adds it in the last map's epilogue.
        if block.shortcut is None:
            steps.append(Add(source, target))
        else:
            steps.append(linear(block.shortcut, source, target, IDENTITY))
        steps.append(linear(block.linear2, middle, target, LEAKY, block.gain))
    program = Program(tuple(widths), tuple(steps), cast(network.head.weight)[0], RELU)
    level_inputs = fold_level_inputs(
        network.embedding,
        [block.level for block in blocks],
        [block.linear1.bias for block in blocks],
        caster(device, torch.float64),
    )
    return FoldedMLP(program, level_inputs)


def fold_level_inputs(
    embedding: EnergyEmbedding,
    levels: list[SpectralLinear],
    biases: list[Tensor | None],
    cast: Cast,
) -> LevelInputs:
    """Return the `LevelInputs` of an energy network.

    Args:
        embedding: of level and label.
        levels: each block's linear map from the embedding.
        biases: of each block's first layer.
        cast: see `caster`.
    """

    def linear(layer: SpectralLinear) -> tuple[Tensor, Tensor]:
        return spectral(layer, cast), cast(layer.bias)

    parts = [linear(layer) for layer in levels]
    return LevelInputs(
        maps=(linear(embedding.linear1), linear(embedding.linear2)),
        label=None if embedding.label is None else linear(embedding.label),
        level=(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
        bias=torch.cat([cast(bias) for bias in biases]),
    )


def _modules(network: ResNetEnergy) -> list[Iterable[nn.Module]]:
    return list(network.stages)  # type: ignore[arg-type]


def _block(block: ResNetBlock, cast: Cast) -> Block:
    gain, skip = cast(block.gain).flatten(), block.shortcut
    return Block(
        conv1=spectral(block.conv1, cast),
        conv2=spectral(block.conv2, cast) * gain[:, None, None, None],
        bias=cast(block.conv2.bias) * gain,
        shortcut=None if skip is None else spectral(skip, cast),
        shortcut_bias=None if skip is None else cast(skip.bias),
    )


def spectral(layer: SpectralConv2d | SpectralLinear, cast: Cast) -> Tensor:
    """Return W / σ of a spectrally normalised layer, with its current u and v."""
    weight = cast(layer.weight)
    return weight / torch.dot(cast(layer.u), weight.flatten(1) @ cast(layer.v))


def caster(device: torch.device, dtype: torch.dtype) -> Cast:
    """Return a function that copies tensors to a device and a dtype, dense."""

    def cast(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.detach().to(device, dtype, copy=True).contiguous()

    return cast
