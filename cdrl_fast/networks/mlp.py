"""Energy and initializer networks for points of a small dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.networks.layers import (
    Classes,
    Conditional,
    leaky,
    level_embedding,
    one_hot,
    without_autocast,
)
from cdrl_fast.networks.resnet import EnergyEmbedding
from cdrl_fast.networks.spectral_norm import SpectralLinear


class MLPBlock(nn.Module):
    """Residual block: `ResNetBlock` with linear maps in place of convolutions."""

    def __init__(self, in_features: int, out_features: int, embedding: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, out_features))
        self.linear1 = SpectralLinear(in_features, out_features)
        self.linear2 = SpectralLinear(out_features, out_features)
        self.level = SpectralLinear(embedding, out_features)
        self.shortcut = (
            SpectralLinear(in_features, out_features) if in_features != out_features else None
        )

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """Return the block's output, (batch, out_features)."""
        with without_autocast(self.level.weight):
            row = leaky(self.level(activated_embedding))
        h = self.linear1(leaky(x))
        h = self.linear2(leaky(h + row.to(h.dtype)))
        h = h * self.gain.to(h.dtype)
        return h + (x if self.shortcut is None else self.shortcut(x))


class MLPEnergy(Conditional):
    """Scalar energy network f(y, λ_{t-1}, label) for points.

    The log-density of ``y`` is f / s_t², up to a constant (`NoiseSchedule.level`).

    Args:
        dim: coordinates per point.
        width: features before the first block; even, at least 4.
        multipliers: features of each block, as multiples of ``width``.
        classes: 0 (unconditional), the number of classes, or their names.

    Shapes: ``y`` (batch, dim); ``logsnr`` and ``label`` (batch,) or (1,); returns (batch,). Inputs
    have the parameters' dtype, the label an integer one; label 0 or None is "no label". The
    defaults have 1,217,920 parameters.

    Raises:
        ValueError, TypeError: as `ResNetEnergy`.

    Source: Zhu et al., ICLR 2024 (2-D experiments).

    Examples:
        >>> import torch
        >>> from cdrl_fast import MLPEnergy
        >>> MLPEnergy(width=16, multipliers=(1,))(torch.zeros(5, 2), torch.zeros(1)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        classes: Classes = 0,
    ) -> None:
        super().__init__()
        if min(dim, *multipliers) < 1 or width < 4 or width % 2:
            raise ValueError(
                "MLPEnergy: expected positive dim and multipliers and an even width of at least 4, "
                f"got {dim}, {tuple(multipliers)}, {width}"
            )
        self._store_config(classes, dim=dim, width=width, multipliers=tuple(multipliers))
        self.embedding = EnergyEmbedding(width, self.num_classes)
        self.stem = SpectralLinear(dim, width)
        widths = [width, *(m * width for m in multipliers)]
        self.blocks = nn.ModuleList(MLPBlock(a, b, 4 * width) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], 1, bias=False)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return f(y, logsnr, label), (batch,); shapes as in the class."""
        label = self._check_label(y, logsnr, label)
        _check_points(self, y)
        with without_autocast(self.head.weight):
            activated = leaky(self.embedding(logsnr, label))
        h = self.stem(y)
        for block in self.blocks:
            h = self._checkpointed("blocks", block, h, activated)
        with without_autocast(self.head.weight):
            return self.head(F.relu(h).to(activated.dtype))[:, 0]


class MLPInitializer(Conditional):
    """Initializer for points: predicts m_t x_{t-1} from x_t; untrained it returns x_t.

    The network is one residual block of `UNetInitializer` with linear maps.

    Args:
        dim: coordinates per point.
        width: features of the block; a multiple of 64.
        embedding: features of the level embedding; even, at least 4.
        classes: 0 (unconditional), the number of classes, or their names.

    Shapes: ``x`` (batch, dim); ``logsnr`` is λ_t, (batch,) or (1,), ``label`` likewise; returns
    (batch, dim). Inputs have the parameters' dtype, the label an integer one. The defaults have
    58,432 parameters.

    Raises:
        ValueError, TypeError: as `ResNetEnergy`; also a width that is not a multiple of 64.

    Source: Zhu et al., ICLR 2024 (2-D experiments).

    Examples:
        >>> import torch
        >>> from cdrl_fast import MLPInitializer
        >>> x = torch.randn(5, 2)
        >>> bool((MLPInitializer()(x, torch.zeros(1)) == x).all())  # untrained
        True
    """

    def __init__(
        self, dim: int = 2, width: int = 64, embedding: int = 128, classes: Classes = 0
    ) -> None:
        super().__init__()
        if dim < 1 or width < 64 or width % 64 or embedding < 4 or embedding % 2:
            raise ValueError(
                "MLPInitializer: expected dim >= 1, width a multiple of 64 and an even embedding "
                f"of at least 4, got {dim}, {width}, {embedding}"
            )
        self._store_config(classes, dim=dim, width=width, embedding=embedding)
        self.embed1 = nn.Linear(embedding, embedding)
        self.embed2 = nn.Linear(embedding, embedding)
        self.label = nn.Linear(self.num_classes + 1, embedding) if self.num_classes else None
        self.stem = nn.Linear(dim, width)
        self.norm1 = nn.GroupNorm(32, width, eps=1e-6)
        self.linear1 = nn.Linear(width, width)
        self.norm2 = nn.GroupNorm(32, width, eps=1e-6)
        self.condition = nn.Linear(embedding, 2 * width)
        self.linear2 = nn.Linear(width, width)
        self.head = nn.Linear(width, dim, bias=False)
        for zero in (self.linear2.weight, self.linear2.bias, self.head.weight):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction of m_t x_{t-1} from x, logsnr and label; shapes as in the class."""
        label = self._check_label(x, logsnr, label)
        _check_points(self, x)
        e = self.embed2(F.silu(self.embed1(level_embedding(logsnr, self.embed1.in_features))))
        if self.label is not None and label is not None:
            e = e + self.label(one_hot(label, self.num_classes, e.dtype))
        scale, shift = self.condition(F.silu(e)).chunk(2, dim=1)
        h = self.stem(x)
        r = self.linear1(F.silu(self.norm1(h)))
        r = self.linear2(F.silu(self.norm2(r) * (1 + scale) + shift))
        return x + self.head(F.silu(h + r))


def _check_points(network: MLPEnergy | MLPInitializer, y: Tensor) -> None:
    dim = network.stem.in_features
    if y.dim() != 2 or y.shape[1] != dim:
        raise ValueError(
            f"{type(network).__name__}: expected points (batch, {dim}), got {tuple(y.shape)}"
        )
