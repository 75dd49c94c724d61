"""Reference of `stem_gradient` and `stem_langevin_` in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cdrl_fast.ops.coefficients import Coefficient
from cdrl_fast.ops.langevin_step.reference import langevin_step
from cdrl_fast.ops.layout import filters


def stem_gradient(g: Tensor, weight: Tensor, terms: int, scale: float) -> Tensor:
    """Return the transposed convolution of g's sum over terms, divided by scale."""
    kernel = filters(weight)
    total = g.to(kernel.dtype).view(terms, len(g) // terms, *g.shape[1:]).sum(dim=0)
    return F.conv_transpose2d(total.permute(0, 3, 1, 2), kernel, padding=1) / scale


def stem_langevin_(
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    terms: int,
    anchor: Tensor | None,
    coefficients: tuple[Coefficient, ...],
    rng: tuple[int, int, int] | Tensor,
    first_bad: Tensor | None,
) -> None:
    """Apply a Langevin step along the gradient to ``y``."""
    gradient = stem_gradient(g, weight, terms, 1.0)
    y.copy_(langevin_step(y, gradient, anchor, coefficients, rng, first_bad))
