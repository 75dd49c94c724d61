"""What the four networks share: spectral norm, level embedding, labels, stream-driven dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LEAK = 0.2
Recompute = Literal["nothing", "activations", "blocks"]
Classes = int | Sequence[str]
Again = Callable[[], Tensor]


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.2, the energy networks' activation."""
    return F.leaky_relu(x, LEAK)


def level_input(logsnr: Tensor) -> Tensor:
    """u = arctan(exp(-clamp(logsnr, ±20)/2)) / (π/2), in [0, 1]; same shape and dtype."""
    return torch.arctan(torch.exp(-0.5 * logsnr.clamp(-20.0, 20.0))) / (math.pi / 2)


def level_embedding(logsnr: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of 1000·u(logsnr): (batch,) → (batch, dim), sines first.

    The dim/2 frequencies are exp(-ln(10000)·i/(dim/2 - 1)).
    """
    half = dim // 2
    index = torch.arange(half, device=logsnr.device, dtype=logsnr.dtype)
    angle = 1000.0 * level_input(logsnr)[:, None] * torch.exp(index * (-math.log(1e4) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def unrounded(weight: Tensor) -> AbstractContextManager[object]:
    """A block without autocast, unless the weights are in half precision, or meta tensors.

    For what is cheap, and would round all that it is multiplied with.

    In bfloat16 the embedding and the head make most of a training gradient's error: with them the
    error is 0.34 of a batch's gradient (the shipped digits model), without them 0.16.
    """
    if weight.is_meta or weight.dtype in (torch.float16, torch.bfloat16):
        return nullcontext()
    return torch.autocast(weight.device.type, enabled=False)


class SpectralNorm(nn.Module):
    """Divides a layer's weight by its largest singular value, estimated by power iteration.

    With W the weight viewed as (out, rest), one iteration is v ← Wᵀu, u ← Wv, both normalised, and
    σ = uᵀWv with u and v constant in the gradient. Each forward in train mode runs one iteration;
    a fresh layer has run 15. Source: Miyato et al., ICLR 2018.
    """

    weight: Tensor
    u: Tensor
    v: Tensor

    def _start_power_iteration(self) -> None:
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0, eps=1e-12))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0, eps=1e-12))
        self.static_weight: Tensor | None = None
        if not self.weight.is_meta:
            self.power_iteration(15)

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Improves u and v in place."""
        matrix = self.weight.flatten(1)
        for _ in range(iterations):
            self.v.copy_(F.normalize(matrix.mT @ self.u, dim=0, eps=1e-12))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))

    def normalized_weight(self) -> Tensor:
        """W / σ, in the weight's shape; differentiable in W."""
        if self.static_weight is not None:
            return self.static_weight
        if self.training:
            self.power_iteration()
        # Copies: the next power iteration writes u and v while autograd still needs these.
        u, v = self.u.clone(), self.v.clone()
        with unrounded(self.weight):
            return self.weight / torch.dot(u, self.weight.flatten(1) @ v)


class SpectralLinear(nn.Linear, SpectralNorm):
    """Linear map with spectral norm."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._start_power_iteration()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized_weight(), self.bias)


class Kernels(NamedTuple):
    """Functions that do the bulk of a network's work in the place of torch's operations.

    Attributes:
        conv3x3: (x, weight, bias, again=) → a 3×3 convolution with zero borders; where ``again`` is
            not None it makes x once more, which need not be kept.
        norm_silu: (x, weight, bias, groups, row=, activate=) → as `GroupNormSilu`.
    """

    conv3x3: Callable[..., Tensor]
    norm_silu: Callable[..., Tensor]


class Replaceable(nn.Module):
    """A module whose work kernels may do: None is torch's operations."""

    kernels: Kernels | None = None


@contextmanager
def using_kernels(network: nn.Module, kernels: Kernels | None) -> Iterator[None]:
    """Within the block these do the network's work."""
    modules = [m for m in network.modules() if isinstance(m, Replaceable)]
    for module in modules:
        module.kernels = kernels
    try:
        yield
    finally:
        for module in modules:
            module.kernels = None


class Conv3x3(nn.Conv2d, Replaceable):
    """3×3 convolution with zero padding and bias."""

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        """``again`` makes x once more, for kernels that then keep less."""
        return self._convolved(x, self.weight, again)

    def _convolved(self, x: Tensor, weight: Tensor, again: Again | None) -> Tensor:
        if self.kernels is not None:
            return self.kernels.conv3x3(x, weight, self.bias, again=again)
        return F.conv2d(x, weight, self.bias, padding=1)


class SpectralConv2d(Conv3x3, SpectralNorm):
    """3×3 convolution with zero padding, bias and spectral norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self._start_power_iteration()

    def forward(self, x: Tensor, again: Again | None = None) -> Tensor:
        return self._convolved(x, self.normalized_weight(), again)


def kernels_of(module: nn.Module) -> Kernels | None:
    """What does a module's work; None for torch."""
    return module.kernels if isinstance(module, Replaceable) else None


def convolved(conv: nn.Module, before: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """conv(before(inputs)), of which kernels keep the inputs alone."""
    x = before(*inputs)
    again = () if kernels_of(conv) is None else (partial(before, *inputs),)
    result: Tensor = conv(x, *again)
    return result


class Conv1x1(nn.Conv2d, Replaceable):
    """1×1 convolution with bias: a linear map of each pixel's channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is None:
            return super().forward(x)
        # Kernels give channels-last maps, on which this is one matrix product.
        pixels = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return pixels.permute(0, 3, 1, 2)


class GroupNormSilu(nn.GroupNorm, Replaceable):
    """silu(norm(x)·(1 + scale) + shift), with 32 groups, or as many as divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=1e-6)

    def forward(self, x: Tensor, row: Tensor | None = None, *, activate: bool = True) -> Tensor:
        """``row`` is (batch, 2·channels), scale then shift; None is 0. The last may be left out."""
        if self.kernels is not None:
            return self.kernels.norm_silu(
                x, self.weight, self.bias, self.num_groups, row=row, activate=activate
            )
        h = super().forward(x)
        if row is not None:
            scale, shift = row[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return F.silu(h) if activate else h


@torch.no_grad()
def network_power_iteration(network: nn.Module) -> None:
    """One power iteration of every layer with spectral norm, those of one shape together."""
    groups: dict[torch.Size, list[SpectralNorm]] = {}
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            groups.setdefault(layer.weight.flatten(1).shape, []).append(layer)
    for layers in groups.values():
        matrices = torch.stack([layer.weight.flatten(1) for layer in layers])
        u = torch.stack([layer.u for layer in layers])[:, :, None]
        v = F.normalize(matrices.mT @ u, dim=1, eps=1e-12)
        u = F.normalize(matrices @ v, dim=1, eps=1e-12)
        torch._foreach_copy_([layer.u for layer in layers], list(u[:, :, 0].unbind()))
        torch._foreach_copy_([layer.v for layer in layers], list(v[:, :, 0].unbind()))


def fix_weights(network: nn.Module) -> None:
    """Computes spectrally normalised weights once, as constants, until `release_weights`.

    For chains, where many forwards see the same parameters. The network must be in eval mode.
    """
    release_weights(network)
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            layer.static_weight = layer.normalized_weight().detach()


def release_weights(network: nn.Module) -> None:
    """Undoes `fix_weights`."""
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            layer.static_weight = None


@contextmanager
def static_weights(network: nn.Module) -> Iterator[None]:
    """`fix_weights` for the length of a block."""
    fix_weights(network)
    try:
        yield
    finally:
        release_weights(network)


class Recomputing(nn.Module):
    """A module that can keep less for its gradient and compute it again (activation checkpointing).

    What is computed again must be the same both times: power iterations are to run apart, see
    `network_power_iteration`, and dropout masks to come from a stream.

    Attributes:
        recompute: "nothing"; "activations": norms and activations of the U-Net; or "blocks": all
            that is inside a residual block.
    """

    recompute: Recompute = "nothing"

    def _kept(self, what: Recompute, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``function(*inputs)``, of which the inputs alone are kept if that is asked for."""
        if self.recompute == what and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return function(*inputs)

    def _convolved(self, conv: nn.Module, before: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """conv(before(inputs)), of which the inputs alone are kept if that is asked for."""
        if kernels_of(conv) is None:
            result: Tensor = conv(self._kept("activations", before, *inputs))
        elif self.recompute == "activations":
            result = convolved(conv, before, *inputs)
        else:
            result = conv(before(*inputs))
        return result


def set_recompute(network: nn.Module, what: Recompute) -> None:
    """Sets what a network's modules compute again for its gradient."""
    for module in network.modules():
        if isinstance(module, Recomputing):
            module.recompute = what


class StreamDropout(nn.Module):
    """Dropout whose mask may come from a noise stream instead of torch's global generator.

    Attributes:
        uniform: None, or a callable that takes the input's shape and returns uniform numbers of
            that shape; an element is kept where its number is at least ``p``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.uniform: Callable[[torch.Size], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.uniform is None:
            return F.dropout(x, self.p)
        return x * (self.uniform(x.shape) >= self.p) / (1.0 - self.p)


@contextmanager
def dropout_from(
    network: nn.Module, uniform: Callable[[torch.Size, int], Tensor]
) -> Iterator[None]:
    """Within the block the j-th dropout layer draws its mask from ``uniform(shape, j)``."""
    layers = [m for m in network.modules() if isinstance(m, StreamDropout)]
    for j, layer in enumerate(layers):
        layer.uniform = partial(lambda j, shape: uniform(shape, j), j)
    try:
        yield
    finally:
        for layer in layers:
            layer.uniform = None


def class_names(classes: Classes) -> tuple[str, ...] | int:
    """``classes`` as it is stored: the number of classes, or their distinct names."""
    if isinstance(classes, int):
        if classes < 0:
            raise ValueError(f"classes: expected a number of classes or their names, got {classes}")
        return classes
    names = tuple(str(name) for name in classes)
    if len(set(names)) != len(names):
        raise ValueError(f"classes: expected distinct names, got {names}")
    return names


def count_classes(classes: Classes) -> int:
    """The number of classes; 0 for an unconditional network."""
    return classes if isinstance(classes, int) else len(classes)


def one_hot(label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(batch,) integers 0 … classes → (batch, classes + 1); 0 is "no label"."""
    return F.one_hot(label.long(), classes + 1).to(dtype)


class Conditional(Recomputing):
    """A network with ``forward(y, logsnr, label)``: checks its input, keeps its configuration.

    ``logsnr`` and ``label`` have one entry a sample, or a single one that serves the whole batch:
    then what depends on them alone is computed once.
    """

    def _keep_config(self, classes: Classes, **config: Any) -> None:
        self.classes = class_names(classes)
        self.num_classes = count_classes(classes)
        self.config: dict[str, Any] = {**config, "classes": self.classes}

    def _checked_label(self, y: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor | None:
        name = type(self).__name__
        for argument, value in (("logsnr", logsnr), ("label", label)):
            if value is not None and value.shape not in ((y.shape[0],), (1,)):
                raise ValueError(
                    f"{name}: {argument} must have shape ({y.shape[0]},) or (1,), got "
                    f"{tuple(value.shape)}"
                )
        if self.num_classes == 0:
            if label is not None:
                raise ValueError(f"{name}: this network is unconditional; drop the label")
            return None
        if label is None:
            return torch.zeros(1, dtype=torch.long, device=y.device)
        if label.is_floating_point() or label.dtype == torch.bool:
            raise TypeError(f"{name}: label must hold integers, got {label.dtype}")
        return label
