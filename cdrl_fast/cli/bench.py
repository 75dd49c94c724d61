"""Time a model's sampling on this machine: `cdrl-fast bench`."""

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

PRECISIONS = ("fp32", "auto")


@dataclass(frozen=True)
class Figure:
    """Time and memory of one contender.

    Attributes:
        name: the contender, such as "eager" or "cdrl-fast, fp32".
        seconds: median time of one call.
        samples_per_second: batch / seconds.
        memory: bytes per sample that one energy gradient keeps, besides weights and state.
        roofline_share: share of the roofline that the contender reaches: the call's FLOP over the
            measured FLOP rate of the processor, divided by ``seconds``. The rate is the faster
            one of float32 and bfloat16; FLOP are those of direct convolutions, so that 3×3
            convolutions with fewer multiplications can reach more than 1.
    """

    name: str
    seconds: float
    samples_per_second: float
    memory: float
    roofline_share: float


@dataclass(frozen=True)
class Bench:
    """Figures of one model; `print` shows them as a table.

    Attributes:
        batch: samples per call.
        flop_per_sample: floating-point operations that one sample takes.
        flop_rate: floating-point operations per second that were measured on the processor.
        figures: one `Figure` per contender, eager PyTorch first.
    """

    batch: int
    flop_per_sample: float
    flop_rate: float
    figures: list[Figure]

    def __str__(self) -> str:
        first = self.figures[0].seconds
        head = (
            f"{self.batch} samples per call, {self.flop_per_sample / 1e9:.1f} GFLOP per sample; "
            f"measured peak {self.flop_rate / 1e9:.0f} GFLOP/s\n"
            f"{'':22} {'samples/s':>10} {'times eager':>11} {'of the roofline':>15} "
            f"{'KiB/sample':>10}"
        )
        rows = (
            f"{f.name:22} {f.samples_per_second:10.1f} {first / f.seconds:11.2f} "
            f"{f.roofline_share:15.1%} {f.memory / 1024:10.1f}"
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
    """Time sampling with eager PyTorch, hand-tuned PyTorch and `Sampler`, round by round.

    Eager PyTorch is `reference.sample` in float32. Hand-tuned PyTorch has folded weights,
    channels-last memory, bfloat16 by autocast, and optionally ``torch.compile``. `Sampler` runs in
    float32 and, where "auto" is another precision, in that one.

    Args:
        model: a model on the device to measure; it is not changed.
        batch: samples per call.
        steps: Langevin steps per level; None: as in training.
        rounds: timed calls of each contender, after one call to warm up.
        compiled: compile the hand-tuned energy; needs a C++ compiler and a minute or more.

    Returns:
        A `Figure` per contender; `print` shows them as a table.

    Raises:
        ValueError: ``batch`` or ``rounds`` is below 1.

    Examples:
        >>> from cdrl_fast import CDRL
        >>> from cdrl_fast.cli.bench import bench
        >>> print(bench(CDRL.from_pretrained("digits"), rounds=3))  # doctest: +SKIP
    """
    if batch < 1 or rounds < 1:
        raise ValueError(f"bench: batch and rounds must be at least 1, got {batch} and {rounds}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    label = cycled_classes(model, batch)
    options: dict[str, Any] = {"steps": steps, "label": label}
    fixed = _with_fixed_weights(model)
    tuned = hand_tuned(model, compiled=compiled)
    tuned_name = "hand-tuned, compiled" if compiled else "hand-tuned"
    tuned_sampler = Sampler(tuned)
    contenders: dict[str, Callable[[], object]] = {
        "eager": lambda: reference.sample(model, batch, noise="torch", **options),
        tuned_name: lambda: tuned_sampler.sample(batch, **options),
    }
    memory = {"eager": _saved_bytes(fixed, batch), tuned_name: _saved_bytes(tuned, batch)}
    samplers = {s.precision.name: s for s in (Sampler(model, precision=p) for p in PRECISIONS)}
    for precision, sampler in samplers.items():
        name = f"cdrl-fast, {precision}"
        contenders[name] = partial(sampler.sample, batch, **options)
        memory[name] = sampler.working_memory(batch) or memory["eager"]
    seconds = _median_seconds(contenders, rounds, model)
    flop, rate = flop_per_sample(model, steps), processor_rate(model)
    figures = [
        Figure(n, s, batch / s, memory[n] / batch, flop * batch / rate / s)
        for n, s in seconds.items()
    ]
    return Bench(batch, flop, rate, figures)


def _median_seconds(
    contenders: dict[str, Callable[[], object]], rounds: int, model: CDRL
) -> dict[str, float]:
    device = _device(model)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if index > 0:  # round 0 warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class _Half(nn.Module):
    """An energy in bfloat16 under autocast, which keeps its dtype when its model is moved."""

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
            energies: Tensor = self._call[0](y, logsnr, label)
        return energies.to(y.dtype)


def hand_tuned(model: CDRL, *, compiled: bool = False) -> CDRL:
    """Return a copy of a model with PyTorch's usual optimisations, the hand-tuned baseline.

    Spectral norms are folded into the weights, the energy runs in bfloat16 by autocast with
    channels-last memory.

    Args:
        model: a model; it is not changed and shares no weights with the copy.
        compiled: apply ``torch.compile`` to the energy, too.
    """
    energy = _Half(folded(model.energy), compiled=compiled)
    return CDRL(
        energy, copy.deepcopy(model.initializer), model.schedule, sample_shape=model.sample_shape
    ).requires_grad_(False)


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode, with weights W / σ in place of spectral normalisation."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (SpectralConv2d, SpectralLinear)):
                setattr(parent, name, _plain_layer(layer))
    return network.requires_grad_(False)


@torch.no_grad()
def _plain_layer(layer: SpectralConv2d | SpectralLinear) -> nn.Module:
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


def _with_fixed_weights(model: CDRL) -> CDRL:
    fixed = copy.deepcopy(model)
    fix_weights(fixed.energy)
    return fixed


def _device(model: CDRL) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _gradient(model: CDRL, batch: int) -> None:
    y = torch.randn(batch, *model.sample_shape, device=_device(model))
    # The FLOP counter fails on a leaf of the graph that is a module's input; a view is none.
    reference.input_gradient(lambda v: model.energy(v.view_as(v), v.new_zeros(1), None), y)


def _saved_bytes(model: CDRL, batch: int) -> float:
    """Return the bytes that autograd saves for one gradient, besides the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.energy.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        _gradient(model, batch)
    return float(sum(saved.values()))


def flop_per_sample(model: CDRL, steps: int | None = None) -> float:
    """Return the FLOP of the convolutions and matrix products that draw one sample."""
    plan = model.schedule.plan(steps)
    gradients = sum(plan.counts) + int(model.is_image)
    total = float(flop_of(partial(_gradient, _with_fixed_weights(model), 1))) * gradients
    if model.initializer is not None:
        x = torch.randn(1, *model.sample_shape, device=_device(model))
        with torch.no_grad():
            flop = flop_of(partial(model.initializer, x, x.new_zeros(1), None))
        total += float(flop) * model.schedule.levels
    return total


def processor_rate(model: CDRL) -> float:
    """Return the highest FLOP rate, per second, measured on the model's device."""
    device = _device(model)
    module = load()
    if device.type == "cpu" and module is not None:
        threads = torch.get_num_threads()
        return max(float(module.peak_flops(half, threads)) for half in (False, True))
    precisions = (Precision("fp32"), Precision("bf16"))
    return max(matmul_rate(device, p.network, p.fp32_precision) for p in precisions)
