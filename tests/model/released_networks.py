"""Independent reference for `load_released_checkpoint`: the authors' networks and checkpoints.

The networks are written from the paper in plain torch, without cdrl_fast, with the names of the
files. Every module registers its children in the files' order, since the EMA lists follow
``parameters()``. ``spectral`` wraps a layer in spectral norm, in either of torch's two versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

Wrap = Callable[[nn.Module], nn.Module]
Pair = tuple[nn.Module, nn.Module]
Draw = Callable[[int], Tensor]


def sinusoids(logsnr: Tensor, dim: int) -> Tensor:
    u = torch.atan(torch.exp(-torch.clamp(logsnr, -20, 20) / 2)) * 2 / math.pi
    rates = [math.exp(-math.log(10000) * i / (dim // 2 - 1)) for i in range(dim // 2)]
    angles = torch.stack([1000 * u * rate for rate in rates], dim=1)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def act(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.2 * x)


class Sinusoids(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, logsnr: Tensor) -> Tensor:
        return sinusoids(logsnr, self.dim)


class EnergyBlock(nn.Module):
    """Residual block of both energies: convolutions for images, linear maps for points."""

    def __init__(self, c_in: int, c_out: int, emb: int, spectral: Wrap, image: bool) -> None:
        super().__init__()

        def layer(a: int, b: int) -> nn.Module:
            return spectral(nn.Conv2d(a, b, 3, padding=1) if image else nn.Linear(a, b))

        self.g = nn.Parameter(torch.ones(1, c_out, 1, 1) if image else torch.ones(1, c_out))
        self.conv1 = layer(c_in, c_out)
        self.conv2 = layer(c_out, c_out)
        self.temb_map = spectral(nn.Linear(emb, c_out))
        if c_in != c_out:
            self.short_cut = layer(c_in, c_out)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        bias = act(self.temb_map(act(e)))
        h = self.conv1(act(x)) + bias.reshape(*bias.shape, *[1] * (x.dim() - 2))
        h = self.g * self.conv2(act(h))
        return h + (self.short_cut(x) if hasattr(self, "short_cut") else x)


class Energy(nn.Module):
    """Energy of images, conditional if ``classes`` > 0."""

    def __init__(
        self,
        spectral: Wrap,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 8,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.temb_map1 = spectral(nn.Linear(width, 4 * width))
        self.temb_map2 = spectral(nn.Linear(4 * width, 4 * width))
        if classes:
            self.y_map = spectral(nn.Linear(classes + 1, 4 * width))
        layers: list[nn.Module] = [spectral(nn.Conv2d(channels, width, 3, padding=1))]
        c_in = width
        for i, multiplier in enumerate(multipliers):
            if i > 0:
                layers.append(nn.AvgPool2d(2))
            for _ in range(blocks):
                layers.append(EnergyBlock(c_in, multiplier * width, 4 * width, spectral, True))
                c_in = multiplier * width
        self.module_list = nn.ModuleList(layers)
        self.temb_final = nn.Linear(4 * width, c_in, bias=False)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        e = self.temb_map2(act(self.temb_map1(sinusoids(logsnr, self.width))))
        if self.classes:
            e = e + self.y_map(torch.eye(self.classes + 1, dtype=y.dtype)[label])
        h = y
        for layer in self.module_list:
            h = layer(h, e) if isinstance(layer, EnergyBlock) else layer(h)
        features = torch.relu(h).sum(3).sum(2)
        return torch.einsum("bc,bc->b", features, self.temb_final(act(e)))


class ToyEnergy(nn.Module):
    """Energy of 2-D points."""

    def __init__(
        self,
        spectral: Wrap,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dim: int = 2,
    ) -> None:
        super().__init__()
        self.width = width
        self.temb_map1 = spectral(nn.Linear(width, 4 * width))
        self.temb_map2 = spectral(nn.Linear(4 * width, 4 * width))
        widths = [width, *(m * width for m in multipliers)]
        blocks = [EnergyBlock(a, b, 4 * width, spectral, False) for a, b in pairwise(widths)]
        self.module_list = nn.ModuleList([spectral(nn.Linear(dim, width)), *blocks])
        self.final_dense = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        e = self.temb_map2(act(self.temb_map1(sinusoids(logsnr, self.width))))
        stem, *blocks = self.module_list
        h = stem(y)
        for block in blocks:
            h = block(h, e)
        return self.final_dense(torch.relu(h)).squeeze(1)


class ResidualBlock(nn.Module):
    """Block of both initializers; ``resample`` is "down", "up" or None."""

    def __init__(
        self, c_in: int, c_out: int, emb: int, image: bool = True, resample: str | None = None
    ) -> None:
        super().__init__()

        def layer(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 3, padding=1) if image else nn.Linear(a, b)

        self.norm1 = nn.GroupNorm(32, c_in, eps=1e-6)
        self.norm2 = nn.GroupNorm(32, c_out, eps=1e-6)
        self.conv1 = layer(c_in, c_out)
        self.conv2 = layer(c_out, c_out)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c_out))
        if c_in != c_out:
            self.res_conv = nn.Conv2d(c_in, c_out, 1)
        if resample == "down":
            self.resample: nn.Module = nn.AvgPool2d(2)
        else:
            self.resample = nn.Upsample(scale_factor=2) if resample else nn.Identity()
        self.resamples = resample is not None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        scale_shift = self.mlp(e)
        scale_shift = scale_shift.reshape(*scale_shift.shape, *[1] * (x.dim() - 2))
        scale, shift = scale_shift.chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(F.silu(h))  # in training, dropout comes before this convolution
        x = self.resample(x)
        return h + (self.res_conv(x) if hasattr(self, "res_conv") else x)


class SelfAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, c, height * width).unbind(1)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c), dim=2)
        h = torch.einsum("bij,bcj->bci", weights, v)
        return x + self.to_out(h.reshape(b, c, height, width))


class Initializer(nn.Module):
    """U-Net with attention at the sizes ``attention`` and always in the middle."""

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        width: int = 64,
        multipliers: Sequence[int] = (1, 1, 1),
        blocks: int = 3,
        attention: Sequence[int] = (16, 8),
        classes: int = 0,
    ) -> None:
        super().__init__()
        emb, self.classes = 4 * width, classes
        self.init_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.time_mlp = nn.Sequential(
            Sinusoids(width), nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        if classes:
            self.y_mlp = nn.Sequential(nn.Linear(classes + 1, emb))
        widths = [m * width for m in multipliers]
        levels, c_in, skips = len(widths), width, [width]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()

        def attend(level: int) -> list[nn.Module]:
            return [SelfAttention(widths[level])] if size // 2**level in attention else []

        for level, c in enumerate(widths):
            stage: list[nn.Module] = []
            for _ in range(blocks):
                stage += [ResidualBlock(c_in, c, emb), *attend(level)]
                c_in = c
                skips.append(c)
            if level < levels - 1:
                stage.append(ResidualBlock(c, c, emb, resample="down"))
                skips.append(c)
            self.downs.append(nn.ModuleList(stage))
        for level in reversed(range(levels)):
            stage = []
            for _ in range(blocks + 1):
                stage += [ResidualBlock(c_in + skips.pop(), widths[level], emb), *attend(level)]
                c_in = widths[level]
            if level > 0:
                stage.append(ResidualBlock(c_in, c_in, emb, resample="up"))
            self.ups.append(nn.ModuleList(stage))
        self.mid_block1 = ResidualBlock(widths[-1], widths[-1], emb)
        self.mid_attn = SelfAttention(widths[-1])
        self.mid_block2 = ResidualBlock(widths[-1], widths[-1], emb)
        self.norm = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.final_conv = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        e = self.time_mlp(logsnr)
        if self.classes:
            e = e + self.y_mlp(torch.eye(self.classes + 1, dtype=x.dtype)[label])
        h = self.init_conv(x)
        skips = [h]
        for stage in self.downs:
            for layer in stage:
                if isinstance(layer, ResidualBlock):
                    h = layer(h, e)
                    skips.append(h)
                else:
                    h = layer(h)
                    skips[-1] = h
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, e)), e)
        for stage in self.ups:
            for layer in stage:
                if isinstance(layer, SelfAttention):
                    h = layer(h)
                else:
                    h = layer(h if layer.resamples else torch.cat([h, skips.pop()], dim=1), e)
        assert not skips
        return x + self.final_conv(F.silu(self.norm(h)))


class ToyInitializer(nn.Module):
    def __init__(self, width: int = 64, emb: int = 128, dim: int = 2) -> None:
        super().__init__()
        self.emb = emb
        self.h1 = nn.Linear(dim, width)
        self.temb_map = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.final_dense = nn.Linear(width, dim, bias=False)
        self.module_list = nn.ModuleList([ResidualBlock(width, width, emb, image=False)])

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        e = self.temb_map(sinusoids(logsnr, self.emb))
        return x + self.final_dense(F.silu(self.module_list[0](self.h1(x), e)))


@dataclass(frozen=True)
class Case:
    """Options of a checkpoint's two networks; ``size`` is the image size, None for points."""

    energy: dict[str, Any] = field(default_factory=dict)
    initializer: dict[str, Any] = field(default_factory=dict)
    size: int | None = 8
    channels: int = 3
    classes: int = 0
    prefix: str = "module."
    spectral: Wrap = spectral_norm
    zipped: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,) if self.size is None else (self.channels, self.size, self.size)

    def build(self) -> Pair:
        if self.size is None:
            return ToyEnergy(self.spectral, **self.energy), ToyInitializer(**self.initializer)
        both: dict[str, Any] = {"channels": self.channels, "classes": self.classes}
        return (
            Energy(self.spectral, **both, **self.energy),
            Initializer(size=self.size, **both, **self.initializer),
        )


def layout(width: int, multipliers: tuple[int, ...], blocks: int, **more: Any) -> dict[str, Any]:
    return {"width": width, "multipliers": multipliers, "blocks": blocks, **more}


def inputs(case: Case, n: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return states, logsnr and labels; the first label is "no label"."""
    label = torch.arange(n) * 5 % (case.classes + 1) if case.classes else None
    return torch.randn(n, *case.shape), torch.tensor([9.8, 0.1, -5.1])[:n], label


def checkpoint(case: Case, seed: int = 0) -> tuple[dict[str, Any], Pair]:
    """Return a file's content and the networks with its EMA parameters, as used for sampling."""
    torch.manual_seed(seed)
    content: dict[str, Any] = {}
    networks = case.build()
    for entry, network in zip(("p", "pi"), networks, strict=True):
        params = list(network.parameters())
        with torch.no_grad():
            for parameter in params:
                parameter.normal_(0, 0.7 / max(parameter[0].numel(), 2) ** 0.5)
            for _ in range(3):
                network.train()(*inputs(case))
        network.eval()
        optimizer = torch.optim.Adam(params, lr=0.0)
        for parameter in params:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, n / 1e4))
        shadow = [(p + 0.1 * p.abs().mean() * torch.randn_like(p)).detach() for p in params]
        live = network.state_dict(prefix=case.prefix)
        for key in live:
            live[key] = live[key].clone()
        content[f"{entry}_state_dict"] = live
        content[f"{entry}_ema_state_dict"] = {
            "decay": 0.9999,
            "num_updates": 400_000,
            "shadow_params": shadow,
            "collected_params": None,
        }
        content[f"{entry}_optimizer"] = optimizer.state_dict()
        if case.size is not None:
            content[f"{entry}_lr_scheduler"] = schedule.state_dict()
        with torch.no_grad():
            for parameter, value in zip(params, shadow, strict=True):
                parameter.copy_(value)
    return content, networks


def evaluated(network: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the energies and their gradients with respect to the first argument."""
    y = arguments[0].clone().requires_grad_(True)
    value = network(y, *arguments[1:])
    return value.detach(), torch.autograd.grad(value.sum(), y)[0]


def plain_chain(networks: Pair, toy: bool, denoise_scale: float, draw: Draw) -> Tensor:
    """Return samples with one Langevin step per level, in float64, from the paper's formulas.

    Args:
        draw: returns the noise of a draw index, of the samples' shape.
    """
    energy, initializer = (network.double() for network in networks)
    low, high = math.atan(math.exp(-4.9)), math.atan(math.exp(2.55))
    lam = [-2 * math.log(math.tan(low + (high - low) * t / 6)) for t in range(7)]
    signal = [1 / (1 + math.exp(-x)) for x in lam]
    noise = [1 / (1 + math.exp(x)) for x in lam]
    kappa, h2 = (1e-3 if toy else 2e-4), 15.0
    x = draw(0)

    def at(value: float) -> Tensor:
        return torch.full((len(x),), value, dtype=torch.float64)

    for t in range(6, 0, -1):
        var = 1 - signal[t] / signal[t - 1]
        m = 1.0 if t == 6 else math.sqrt(1 - var)
        c = (1.0 if toy else math.sqrt(noise[t - 1])) / math.sqrt(noise[0])
        with torch.no_grad():
            y = initializer(x, at(lam[t]))
        y = y + math.sqrt(noise[t - 1] / noise[t] * var) * m * draw((7 - t) * 65536)
        drift = h2 / 2 * evaluated(energy, y, at(lam[t - 1]))[1]
        recovery = 0.0 if t == 6 else h2 * kappa * c * (y - x)
        y = y + drift - recovery + math.sqrt(2 * kappa * c * var * h2) * draw((7 - t) * 65536 + 1)
        x = y / (m + 1e-8)
    if toy:
        return x
    score = m * evaluated(energy, m * x, at(lam[0]))[1] / (2 * kappa * var)
    return ((x + denoise_scale * noise[0] * score) / math.sqrt(signal[0])).clamp(-1, 1)
