"""Folding: a network's weights with all that is constant along a chain multiplied in.

Spectral norms and gains go into the weights. What depends on level and label alone becomes one bias
row a block: f(y, λ, label) turns into f(y; rows, head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdrl_fast.networks import MLPEnergy, ResNetEnergy
from cdrl_fast.networks.layers import LEAK, SpectralConv2d, SpectralLinear, leaky, level_embedding
from cdrl_fast.networks.mlp import MLPBlock
from cdrl_fast.networks.resnet import EnergyEmbedding, ResNetBlock
from cdrl_fast.ops.energy_gradient import Block, ResNetWeights
from cdrl_fast.ops.mlp_chain import IDENTITY, RELU, Activation, Add, Linear, Program
from cdrl_fast.ops.mlp_chain.program import Instruction

LEAKY = Activation("leaky_relu", LEAK)
FEW_LABELS = 128
"""Computed for all of them, which waits for no device; of more only those that are asked for."""
Cast = Callable[[Tensor | None], Tensor]
LinearMap = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LevelInputs:
    """From level and label to what the energy's blocks and head need of them.

    In float64, so that the last bits do not depend on how many labels are computed together; each
    label is computed once. The sines of the embedding are taken in the network's own precision,
    as the module does: their argument is large, and float32 shows.

    Attributes:
        maps: weight and bias of the embedding's two linear maps.
        label: weight (4·width, classes + 1) and bias of the label's, or None.
        level: weight (R, 4·width) and bias (R,) of all blocks' maps, one below the other.
        bias: (R,), of the blocks' first convolutions.
    """

    maps: tuple[LinearMap, LinearMap]
    label: LinearMap | None
    level: LinearMap
    bias: Tensor

    def __call__(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows (n, R) and the activated embedding (n, 4·width), n being the longer argument's.

        Args:
            logsnr: λ_{t-1}, (1,) or (batch,), in the network's precision.
            label: int64 (1,) or (batch,), 0 being "no label"; None is that too.
        """
        e, back = embedded(self.maps, self.label, leaky, logsnr, label)
        weight, bias = self.level
        rows = self.bias + leaky(e @ weight.mT + bias)
        return (rows, e) if back is None else (rows[back], e[back])


def embedded(
    maps: tuple[LinearMap, LinearMap],
    label_map: LinearMap | None,
    activation: Callable[[Tensor], Tensor],
    logsnr: Tensor,
    label: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The activated embedding of levels and labels, each label once, in the maps' precision.

    Returns:
        (m, 4·width), and for each sample its row of these; None where rows and samples agree.
    """
    (w1, b1), (w2, b2) = maps
    e = level_embedding(logsnr, w1.shape[1]).to(w1.dtype)
    e = activation(e @ w1.mT + b1) @ w2.mT + b2
    back = None
    if label_map is not None:
        weight, bias = label_map
        index = logsnr.new_zeros(1, dtype=torch.long) if label is None else label.long()
        if len(logsnr) == 1 and len(index) > 1:
            if weight.shape[1] <= FEW_LABELS:
                index, back = torch.arange(weight.shape[1], device=index.device), index
            else:
                index, back = torch.unique(index, return_inverse=True)
        e = e + weight.mT[index] + bias
    return activation(e), back


@dataclass(frozen=True)
class FoldedResNet:
    """A `ResNetEnergy` as static weights.

    Attributes:
        head: float64 (channels, 4·width), of the embedding.
    """

    weights: ResNetWeights
    level_inputs: LevelInputs
    head: Tensor

    def at(self, logsnr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows (n, R) and head (n, channels) of `EnergyGradient`; see `LevelInputs`."""
        rows, e = self.level_inputs(logsnr, label)
        dtype = self.weights.stem.dtype
        return rows.to(dtype), (e @ self.head.mT).to(dtype)


@dataclass(frozen=True)
class FoldedMLP:
    """An `MLPEnergy` as a program, whose rows are what depends on the level."""

    program: Program
    level_inputs: LevelInputs

    def at(self, logsnr: Tensor, label: Tensor | None) -> Tensor:
        """Rows (n, R) of `mlp_chain_`; see `LevelInputs`."""
        return self.level_inputs(logsnr, label)[0].to(self.program.dtype)


@torch.no_grad()
def fold_resnet(network: ResNetEnergy, device: torch.device, dtype: torch.dtype) -> FoldedResNet:
    """Static weights of the network as it is in eval mode; tensors of their own.

    Exact: in float64 the folded network equals the module to rounding.
    """
    cast = caster(device, dtype)
    stages = [[b for b in stage if isinstance(b, ResNetBlock)] for stage in _modules(network)]
    blocks = [block for stage in stages for block in stage]
    weights = ResNetWeights(
        spectral(network.stem, cast),
        cast(network.stem.bias),
        tuple(tuple(_block(block, cast) for block in stage) for stage in stages),
    )
    exactly = caster(device, torch.float64)
    folded = fold_level_inputs(
        network.embedding,
        [block.level for block in blocks],
        [block.conv1.bias for block in blocks],
        exactly,
    )
    return FoldedResNet(weights, folded, exactly(network.head.weight))


@torch.no_grad()
def fold_mlp(network: MLPEnergy, device: torch.device, dtype: torch.dtype) -> FoldedMLP:
    """The energy of points as it is in eval mode, as a program with tensors of its own."""
    cast = caster(device, dtype)

    def linear(
        layer: SpectralLinear, source: int, target: int, by: Activation, gain: Tensor | None = None
    ) -> Linear:
        weight, bias = spectral(layer, cast), cast(layer.bias)
        if gain is not None:
            gain = cast(gain).flatten()
            weight, bias = weight * gain[:, None], bias * gain
        return Linear(source, target, weight, bias, by)

    blocks = [block for block in network.blocks if isinstance(block, MLPBlock)]
    widths, column = [network.stem.in_features, network.stem.out_features], 0
    steps: list[Instruction] = [linear(network.stem, 0, 1, IDENTITY)]
    for block in blocks:
        source, middle, target = len(widths) - 1, len(widths), len(widths) + 1
        outs = block.linear1.out_features
        widths += [outs, outs]
        row = slice(column, column := column + outs)
        steps.append(Linear(source, middle, spectral(block.linear1, cast), row, LEAKY))
        # The shortcut comes first: the kernel then adds it in the last map's epilogue.
        if block.shortcut is None:
            steps.append(Add(source, target))
        else:
            steps.append(linear(block.shortcut, source, target, IDENTITY))
        steps.append(linear(block.linear2, middle, target, LEAKY, block.gain))
    program = Program(tuple(widths), tuple(steps), cast(network.head.weight)[0], RELU)
    folded = fold_level_inputs(
        network.embedding,
        [block.level for block in blocks],
        [block.linear1.bias for block in blocks],
        caster(device, torch.float64),
    )
    return FoldedMLP(program, folded)


def fold_level_inputs(
    embedding: EnergyEmbedding,
    levels: list[SpectralLinear],
    biases: list[Tensor | None],
    cast: Cast,
) -> LevelInputs:
    """`LevelInputs` of an energy network with these maps from the embedding to its blocks."""

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
    """W / σ of a spectrally normalised layer, with u and v as they are."""
    weight = cast(layer.weight)
    return weight / torch.dot(cast(layer.u), weight.flatten(1) @ cast(layer.v))


def caster(device: torch.device, dtype: torch.dtype) -> Cast:
    """A function that makes a dense copy on a device, in a dtype."""

    def cast(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return tensor.detach().to(device, dtype, copy=True).contiguous()

    return cast
