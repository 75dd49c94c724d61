"""How fast a model samples on this machine: `cdrl-fast bench`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast import reference
from cdrl_fast._extension import load
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.networks.spectral_norm import SpectralConv2d, SpectralLinear, fix_weights
from cdrl_fast.precision import Precision
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.training.flops import flop_of, matmul_rate


@dataclass(frozen=True)
class Figure:
    """What one way to draw the samples costs.

    Attributes:
        seconds: median of the rounds, of one call.
        samples_per_second: batch / seconds.
        memory: bytes a sample that one energy gradient keeps, besides weights and state.
        share: of the floor: operations over the processor's measured rate in bfloat16 products
            where it has them and in float32 elsewhere, divided by the seconds. Operations are
            those of plain sums; 3×3 convolutions that multiply less can be below the floor.
    """

    name: str
    seconds: float
    samples_per_second: float
    memory: float
    share: float


@dataclass(frozen=True)
class Bench:
    """Figures of one model; prints as a table."""

    batch: int
    operations: float
    rate: float
    figures: list[Figure]

    def __str__(self) -> str:
        first = self.figures[0].seconds
        head = (
            f"{self.batch} samples, {self.operations / 1e9:.1f} GFLOP each; "
            f"measured rate {self.rate / 1e9:.0f} GFLOP/s\n"
            f"{'':22} {'samples/s':>10} {'times eager':>11} {'of the floor':>12} {'KiB/sample':>11}"
        )
        rows = (
            f"{f.name:22} {f.samples_per_second:10.1f} {first / f.seconds:11.2f} {f.share:12.1%} "
            f"{f.memory / 1024:11.1f}"
            for f in self.figures
        )
        return "\n".join([head, *rows])


def bench(
    model: CDRL,
    *,
    batch: int = 64,
    steps: int | None = None,
    rounds: int = 5,
    compiled: bool = False,
) -> Bench:
    """Times whole samples, the ways in turn: the plain path, an afternoon's work, and `Sampler`.

    The plain path is `reference.sample` in eager float32. The afternoon's has weights folded,
    channels last, bfloat16 by autocast, and optionally ``torch.compile``.

    Args:
        model: on the device to measure.
        batch: samples a call.
        steps: Langevin steps a level; None: as trained.
        rounds: timed calls of each.
        compiled: compile the afternoon's energy (a C++ compiler is needed, and a minute or more).

    Raises:
        ValueError: fewer than one sample or round.
    """
    if batch < 1 or rounds < 1:
        raise ValueError(f"bench: batch and rounds must be at least 1, got {batch} and {rounds}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    label = cycled_classes(model, batch)
    options: dict[str, Any] = {"steps": steps, "label": label}
    plain = _without_norms(model)
    by_hand = afternoon(model, compiled=compiled)
    name = "afternoon, compiled" if compiled else "afternoon"
    fast = {f"ours, {p}": Sampler(model, precision=p) for p in ("fp32", "auto")}
    if fast["ours, auto"].precision.name == "fp32":
        del fast["ours, auto"]
    hand_sampler = Sampler(by_hand)
    ways: dict[str, Callable[[], object]] = {
        "eager": lambda: reference.sample(model, batch, noise="torch", **options),
        name: lambda: hand_sampler.sample(batch, **options),
    }
    memory = {"eager": _kept(plain, batch), name: _kept(by_hand, batch)}
    for title, sampler in fast.items():
        title = title.replace("auto", sampler.precision.name)
        ways[title] = partial(sampler.sample, batch, **options)
        memory[title] = sampler.working_memory(batch) or memory["eager"]
    seconds = _timed(ways, rounds, model)
    work, rate = operations(model, steps), processor_rate(model)
    figures = [
        Figure(n, s, batch / s, memory[n] / batch, work * batch / rate / s)
        for n, s in seconds.items()
    ]
    return Bench(batch, work, rate, figures)


def _timed(ways: dict[str, Callable[[], object]], rounds: int, model: CDRL) -> dict[str, float]:
    device = _device(model)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first is for warming up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class _Half(nn.Module):
    """An energy in bfloat16 under autocast, whose dtype is its own whatever it is moved to."""

    def __init__(self, energy: nn.Module, *, compiled: bool) -> None:
        super().__init__()
        self.classes = getattr(energy, "classes", 0)
        dtype = torch.bfloat16
        half = energy.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._call: list[Any] = [torch.compile(half) if compiled else half]
        self._dtype = dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> _Half:
        return self

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        if y.dim() == 4:
            y = y.to(memory_format=torch.channels_last)
        with torch.autocast(y.device.type, self._dtype):
            value: Tensor = self._call[0](y, logsnr, label)
        return value.to(y.dtype)


def afternoon(model: CDRL, *, compiled: bool = False) -> CDRL:
    """The model as a good engineer would make it fast in an afternoon; shares no weights."""
    energy = _Half(folded(model.energy), compiled=compiled)
    return CDRL(
        energy, copy.deepcopy(model.initializer), model.schedule, sample_shape=model.sample_shape
    ).requires_grad_(False)


def folded(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose spectrally normalised layers are plain ones with W / σ."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (SpectralConv2d, SpectralLinear)):
                setattr(parent, name, _plain(layer))
    return network.requires_grad_(False)


@torch.no_grad()
def _plain(layer: SpectralConv2d | SpectralLinear) -> nn.Module:
    device = layer.weight.device
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, SpectralConv2d):
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, device=device)
    else:
        plain = nn.Linear(layer.in_features, layer.out_features, device=device)
    plain.weight.copy_(layer.normalized_weight())
    assert plain.bias is not None
    assert layer.bias is not None
    plain.bias.copy_(layer.bias)
    return plain


def _without_norms(model: CDRL) -> CDRL:
    plain = copy.deepcopy(model)
    fix_weights(plain.energy)
    return plain


def _device(model: CDRL) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _gradient(model: CDRL, batch: int) -> None:
    y = torch.randn(batch, *model.sample_shape, device=_device(model))
    # A view, since the counter of operations does not take leaves of the graph into a module.
    reference.input_gradient(lambda v: model.energy(v.view_as(v), v.new_zeros(1), None), y)


def _kept(model: CDRL, batch: int) -> float:
    """Bytes that autograd keeps for one gradient, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.energy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _gradient(model, batch)
    return float(sum(kept.values()))


def operations(model: CDRL, steps: int | None = None) -> float:
    """Floating-point operations of one sample's convolutions and matrix products."""
    plan = model.schedule.plan(steps)
    gradients = sum(plan.counts) + int(model.is_image)
    total = float(flop_of(partial(_gradient, _without_norms(model), 1))) * gradients
    if model.initializer is not None:
        x = torch.randn(1, *model.sample_shape, device=_device(model))
        with torch.no_grad():
            flop = flop_of(partial(model.initializer, x, x.new_zeros(1), None))
        total += float(flop) * model.schedule.levels
    return total


def processor_rate(model: CDRL) -> float:
    """Floating-point operations a second that this device has been seen to do."""
    device = _device(model)
    module = load()
    if device.type == "cpu" and module is not None:
        threads = torch.get_num_threads()
        return max(float(module.peak_flops(half, threads)) for half in (False, True))
    tried = (Precision("fp32"), Precision("bf16"))
    return max(matmul_rate(device, each.network, each.fp32_precision) for each in tried)
