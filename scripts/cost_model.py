"""What CDRL costs, on paper: FLOP and memory counted on meta tensors, times from published peaks.

Nothing here is measured. Counts come from the networks themselves, which run on meta tensors:
shapes without numbers. Times follow from a `Machine`, whose peaks are the vendor's and whose other
figures are assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cdrl_fast.engine.fold import fold_resnet
from cdrl_fast.engine.passes import ResNetPasses
from cdrl_fast.floor import flop_of
from cdrl_fast.recipe import ModelOptions
from torch import Tensor, nn

from cdrl_fast.data import Dataset
from cdrl_fast.networks.resnet import ResNetBlock
from cdrl_fast.precision import Precision

META = torch.device("meta")


@dataclass(frozen=True)
class Machine:
    """A GPU: the vendor's figures, then assumptions.

    Attributes:
        peak: FLOP/s of dense bfloat16 products; the default is NVIDIA's of an H100 SXM.
        processors: its streaming multiprocessors, which share out a product's tiles.
        memory: bytes.
        efficiency: assumed share of the peak while every processor has a tile of the largest size.
        tiles: assumed rows and columns of a product that a processor may make at a time. Smaller
            ones read more for each product: their rate is taken as proportional to their side.
        kernel_seconds: assumed least time of one kernel, as in a captured graph.
        hop_seconds: assumed delay of one message between GPUs.
    """

    peak: float = 989.4e12
    processors: int = 132
    memory: float = 80e9
    efficiency: float = 0.4
    tiles: tuple[int, ...] = (128, 64, 32)
    kernel_seconds: float = 3e-6
    hop_seconds: float = 5e-6

    @property
    def rate(self) -> float:
        """FLOP/s with every processor busy."""
        return self.peak * self.efficiency

    def product_seconds(self, rows: int, columns: int, depth: int) -> float:
        """A matrix product by the best tile; its last round may leave processors idle."""
        return max(
            self.kernel_seconds,
            min(self._tiled_seconds(rows, columns, depth, side) for side in self.tiles),
        )

    def _tiled_seconds(self, rows: int, columns: int, depth: int, side: int) -> float:
        width = min(side, columns)
        tiles = math.ceil(rows / side) * math.ceil(columns / width)
        rate = self.rate * side / max(self.tiles) / self.processors
        return math.ceil(tiles / self.processors) * 2 * side * width * depth / rate

    def exchange_seconds(self, gpus: int, size: float, bandwidth: float) -> float:
        """A sum of ``size`` bytes over all GPUs: 2(N - 1)/N · size / bandwidth, plus the delays.

        ``bandwidth`` is of one GPU's link, or one machine's, each way: a ring crosses it once.
        """
        delays = 2 * math.ceil(math.log2(gpus)) * self.hop_seconds
        return 2 * (gpus - 1) / gpus * size / bandwidth + delays


@dataclass(frozen=True)
class Convolution:
    """One convolution: pixels of its output an image, channels, and taps of its kernel."""

    pixels: int
    inputs: int
    outputs: int
    taps: int

    def forward(self, images: int, machine: Machine) -> float:
        """Seconds."""
        return machine.product_seconds(images * self.pixels, self.outputs, self.taps * self.inputs)

    def input_gradient(self, images: int, machine: Machine) -> float:
        return machine.product_seconds(images * self.pixels, self.inputs, self.taps * self.outputs)

    def weight_gradient(self, images: int, machine: Machine) -> float:
        """Its sums run over the pixels and can be split among all processors."""
        return max(machine.kernel_seconds, images * self.flop / machine.rate)

    @property
    def flop(self) -> float:
        """Of one direction, an image."""
        return 2.0 * self.pixels * self.inputs * self.outputs * self.taps


@dataclass(frozen=True)
class Cost:
    """Of one model; FLOP and bytes are an image's.

    Attributes:
        energy_parameters, initializer_parameters: numbers of them.
        gradient: FLOP of an energy's value and input gradient.
        phase: FLOP of an energy's value and parameters' gradient.
        proposal: FLOP of the initializer.
        lesson: FLOP of the initializer and its parameters' gradient.
        kept: bytes that autograd holds in a phase, in bfloat16.
        kept_by_blocks: the same where blocks are computed again: their inputs and one's inside.
        chain: bytes that the library's gradient works in, in bfloat16.
    """

    levels: int
    steps: int
    energy_parameters: int
    initializer_parameters: int
    gradient: float
    phase: float
    proposal: float
    lesson: float
    kept: float
    kept_by_blocks: float
    chain: float
    energy: tuple[Convolution, ...]
    initializer: tuple[Convolution, ...]

    @property
    def parameters(self) -> int:
        return self.energy_parameters + self.initializer_parameters

    @property
    def exchanged(self) -> int:
        """Bytes of all gradients in float32."""
        return 4 * self.parameters

    @property
    def state(self) -> int:
        """Bytes of weights, gradients, Adam's two moments and averages in float32."""
        return 5 * 4 * self.parameters

    def sample(self, steps: int | None = None) -> float:
        """FLOP of one image: T levels of a proposal and K gradients, and the denoising step."""
        steps = self.steps if steps is None else steps
        return self.levels * (steps * self.gradient + self.proposal) + self.gradient

    @property
    def training(self) -> float:
        """FLOP of one image in a training iteration: K gradients, both phases, the lesson."""
        return self.steps * self.gradient + 2 * self.phase + self.lesson

    def sample_seconds(self, images: int, machine: Machine, steps: int | None = None) -> float:
        """A batch of samples on one GPU."""
        steps = self.steps if steps is None else steps
        gradient = self._gradient_seconds(images, machine)
        proposal = sum(c.forward(images, machine) for c in self.initializer)
        return self.levels * (steps * gradient + proposal) + gradient

    def training_seconds(self, images: int, machine: Machine) -> float:
        """An iteration of that many images on one GPU."""
        gradient = self._gradient_seconds(images, machine)
        weights = sum(c.weight_gradient(images, machine) for c in self.energy)
        lesson = sum(
            c.forward(images, machine)
            + c.input_gradient(images, machine)
            + c.weight_gradient(images, machine)
            for c in self.initializer
        )
        return self.steps * gradient + 2 * (gradient + weights) + lesson

    def _gradient_seconds(self, images: int, machine: Machine) -> float:
        return sum(
            c.forward(images, machine) + c.input_gradient(images, machine) for c in self.energy
        )


def count(options: ModelOptions, size: int, channels: int = 3) -> Cost:
    """The cost of a model of square images, without labels."""
    empty = Dataset("empty", np.zeros((1, channels, size, size), np.uint8), None, ())
    with META:
        model = options.build(empty)
    # Power iterations run apart from the losses, as the trainer has it.
    energy, initializer = model.energy.eval(), model.initializer
    assert initializer is not None
    shape = (channels, size, size)

    def through(network: nn.Module, *, frozen: bool = False, back: bool = True) -> float:
        network.requires_grad_(not frozen)

        def call() -> None:
            value = network(*_inputs(1, shape, gradient=frozen))
            if back:
                value.sum().backward()

        return flop_of(call)

    found = {
        "gradient": through(energy, frozen=True),
        "phase": through(energy),
        "proposal": through(initializer, back=False),
        "lesson": through(initializer),
    }
    kept, kept_by_blocks = _kept(energy.requires_grad_(True).to(torch.bfloat16), shape)
    precision = Precision("bf16")
    weights = fold_resnet(energy, META, precision.state).weights
    passes = ResNetPasses(weights, size, size, precision=precision, backend="reference")
    return Cost(
        levels=options.levels,
        steps=options.steps,
        energy_parameters=sum(p.numel() for p in energy.parameters()),
        initializer_parameters=sum(p.numel() for p in initializer.parameters()),
        kept=kept,
        kept_by_blocks=kept_by_blocks,
        chain=_an_image(passes.working_memory),
        energy=_convolutions(energy, shape),
        initializer=_convolutions(initializer, shape),
        **found,
    )


def _an_image(of: Callable[[int], float]) -> float:
    """What one more image adds: what is done once a batch is left out."""
    return of(2) - of(1)


def _inputs(
    images: int, shape: tuple[int, ...], *, gradient: bool = False, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    y = torch.empty(images, *shape, device=META, dtype=dtype, requires_grad=gradient)
    return y, torch.empty(images, device=META, dtype=dtype)


def _kept(network: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Bytes that autograd holds: as it is, and with blocks computed again."""
    (one, inputs, inside), (two, _, both) = (_held(network, shape, images) for images in (1, 2))
    # What is held of weights is the same for one image and for two.
    widest = max(both[i] - inside[i] - inputs[i] for i in range(len(inputs)))
    return two - one, sum(inputs) + widest


def _held(
    network: nn.Module, shape: tuple[int, ...], images: int
) -> tuple[int, list[int], list[int]]:
    """Bytes held in all, and of each residual block those of its input and those held inside."""
    storages: list[dict[int, int]] = [{}]  # of what is outside of blocks, then of each block
    inputs: list[int] = []
    alive: list[Tensor] = []
    place = [0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[place[0]][storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def enter(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].nbytes)
        storages.append({})
        place[0] = len(storages) - 1

    def leave(*_: object) -> None:
        place[0] = 0

    blocks = [m for m in network.modules() if isinstance(m, ResNetBlock)]
    hooks = [b.register_forward_pre_hook(enter) for b in blocks]
    hooks += [b.register_forward_hook(leave) for b in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(*_inputs(images, shape, dtype=torch.bfloat16))
    for hook in hooks:
        hook.remove()
    everything: dict[int, int] = {}
    for part in storages:
        everything |= part
    return sum(everything.values()), inputs, [sum(part.values()) for part in storages[1:]]


def _convolutions(network: nn.Module, shape: tuple[int, ...]) -> tuple[Convolution, ...]:
    found: list[Convolution] = []

    def note(layer: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        taps = math.prod(layer.kernel_size)
        pixels = math.prod(out.shape[2:])
        found.append(Convolution(pixels, layer.in_channels, layer.out_channels, taps))

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        network(*_inputs(1, shape, dtype=dtype))
    for hook in hooks:
        hook.remove()
    return tuple(found)
