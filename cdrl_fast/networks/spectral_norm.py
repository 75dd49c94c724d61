"""Spectral normalisation: layers whose weights have largest singular value 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.networks.kernels import Conv3x3, InputFactory
from cdrl_fast.networks.layers import without_autocast


class SpectralNorm(nn.Module):
    """Division of a layer's weight by its largest singular value, estimated by power
    iteration.

    With W the weight viewed as (out, rest), one iteration is v ← Wᵀu, u ← Wv, both normalised, and
    σ = uᵀWv with u and v constant in the gradient. Each forward in train mode runs one iteration;
    a new layer has run 15. Source: Miyato et al., ICLR 2018.
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
        """Improve u and v in place."""
        matrix = self.weight.flatten(1)
        for _ in range(iterations):
            self.v.copy_(F.normalize(matrix.mT @ self.u, dim=0, eps=1e-12))
            self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))

    def normalized_weight(self) -> Tensor:
        """Return W / σ, in the weight's shape; differentiable in W."""
        if self.static_weight is not None:
            return self.static_weight
        if self.training:
            self.power_iteration()
        # Copies: the next power iteration writes u and v while autograd still needs these.
        u, v = self.u.clone(), self.v.clone()
        with without_autocast(self.weight):
            return self.weight / torch.dot(u, self.weight.flatten(1) @ v)


class SpectralLinear(nn.Linear, SpectralNorm):
    """Linear map with bias and spectral norm."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._start_power_iteration()

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x, (batch, in_features)."""
        return F.linear(x, self.normalized_weight(), self.bias)


class SpectralConv2d(Conv3x3, SpectralNorm):
    """3×3 convolution with zero padding, bias and spectral norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self._start_power_iteration()

    def forward(self, x: Tensor, again: InputFactory | None = None) -> Tensor:
        """Return the convolution of x; arguments as `Conv3x3.forward`."""
        return self._convolve_with(self.normalized_weight(), x, again)


@torch.no_grad()
def network_power_iteration(network: nn.Module) -> None:
    """Run one power iteration of every layer with spectral norm, layers of equal shape together."""
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
    """Compute the normalised weights once and use them as constants until `release_weights`.

    For chains, where many forwards see the same parameters. The network must be in eval mode.
    """
    release_weights(network)
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            layer.static_weight = layer.normalized_weight().detach()


def release_weights(network: nn.Module) -> None:
    """Undo `fix_weights`."""
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            layer.static_weight = None


@contextmanager
def static_weights(network: nn.Module) -> Iterator[None]:
    """Apply `fix_weights` within the block."""
    fix_weights(network)
    try:
        yield
    finally:
        release_weights(network)
