"""The last step of an energy network's input gradient on GPUs, and the Langevin update in one."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.coefficients import Coefficient, check_coefficients
from cdrl_fast.ops.dispatch import TRITON_BACKENDS, choose
from cdrl_fast.ops.layout import check_activations, check_apart, check_dense, sum_dtype
from cdrl_fast.ops.philox import check_int64, check_rng, signed
from cdrl_fast.ops.stem_gradient import reference


def stem_gradient(
    g: Tensor,
    weight: Tensor,
    *,
    terms: int = 1,
    scale: float = 1.0,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The gradient by the images: the transpose of `stem`'s convolution of g, divided by scale.

    Of a linear combination of conditions, g holds one part a term and their gradients are summed.

    Args:
        g: gradient by the convolution's output; dense (terms·batch, height, width, channels), one
            term's batch after the other, channels a multiple of 32; float16, bfloat16, float32 or
            float64.
        weight: that of `stem`, dense (9, 1 to 4 image channels, channels) in g's dtype.
        terms: how many parts g has; a sum over them costs no rounding.
        scale: what g is multiplied by, as that of `head`.
        out: where to write; dense (batch, image channels, height, width), float32 (float64 with
            float64); apart from g and weight.
        backend: "triton", "reference", or "auto": the first that can. float64 is the reference's.

    Returns:
        ``out``, or a new tensor. Sums are of its dtype.

    Raises:
        ValueError: shapes that do not fit. TypeError: dtypes that do not.
        BackendUnavailable: an explicit backend that cannot be had.

    Source: the network of Zhu et al., ICLR 2024.
    """
    shape = _image_shape("stem_gradient", g, weight, terms)
    dtype = sum_dtype(g.dtype)
    out = torch.empty(shape, dtype=dtype, device=g.device) if out is None else out
    check_dense("stem_gradient", "out", out, shape, dtype, g.device)
    check_apart("stem_gradient", "out", out, {"g": g, "weight": weight})
    chosen = choose("stem_gradient", backend, g.device, g.dtype, TRITON_BACKENDS)
    if chosen == "reference" or not g.numel():
        return out.copy_(reference.stem_gradient(g, weight, terms, scale))
    from cdrl_fast.ops.stem_gradient import triton_kernel

    triton_kernel.stem_gradient(g, weight, terms, scale, out)
    return out


def stem_langevin_(
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    anchor: Tensor | None = None,
    *,
    drift: Coefficient,
    pull: Coefficient,
    noise_std: Coefficient,
    rng: tuple[int, int, int] | Tensor,
    rescale: Coefficient = 1.0,
    terms: int = 1,
    first_bad: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`langevin_step_` of the images y along `stem_gradient` of g, in one pass over g and y.

    y ← rescale·(y + drift·gradient - pull·(y - anchor) + noise_std·z), with the noise of
    `langevin_step`. A scale of g is undone in ``drift``.

    Args:
        y: images, dense (batch, image channels, height, width), float32 (float64 with float64);
            written.
        g, weight, terms: as for `stem_gradient`.
        anchor: x_t of the recovery term, like ``y`` and not sharing its memory; None where there
            is none.
        drift, pull, noise_std, rescale: a number, or a tensor () or (1,) or (batch,). A single
            element on y's device is read by the kernel, so that replays of a CUDA graph see it
            changed.
        rng: (seed, draw, first_sample) of the noise stream, see `normal`; or an `rng_state` on y's
            device, whose draw the step moves on by one.
        first_bad: as for `langevin_step`.
        backend: as for `stem_gradient`.

    Returns:
        ``y``.

    Raises:
        As `stem_gradient`.

    Source: Langevin dynamics of a recovery likelihood (Gao et al., ICLR 2021).
    """
    where = "stem_langevin_"
    coefficients = (drift, pull, noise_std, rescale)
    shape = _image_shape(where, g, weight, terms)
    check_dense(where, "y", y, shape, sum_dtype(g.dtype), g.device)
    check_dense(where, "anchor", anchor, shape, y.dtype, g.device)
    check_apart(where, "y", y, {"g": g, "weight": weight, "anchor": anchor})
    check_coefficients(where, coefficients, shape[0], anchor)
    check_int64(where, "first_bad", first_bad, 1, y)
    check_rng(where, rng, y)
    if not isinstance(rng, Tensor):
        rng = (signed(rng[0]), *rng[1:])
    chosen = choose(where, backend, y.device, y.dtype, TRITON_BACKENDS)
    if chosen == "reference" or not y.numel():
        reference.stem_langevin_(y, g, weight, terms, anchor, coefficients, rng, first_bad)
        return y
    from cdrl_fast.ops.stem_gradient import triton_kernel

    triton_kernel.stem_langevin_(y, g, weight, terms, anchor, coefficients, rng, first_bad)
    return y


def _image_shape(where: str, g: Tensor, weight: Tensor, terms: int) -> tuple[int, int, int, int]:
    """Shape of the images, after g and weight have been checked."""
    check_activations(where, "g", g)
    batch, height, width, channels = g.shape
    if not isinstance(terms, int) or terms < 1 or batch % terms:
        raise ValueError(
            f"{where}: terms must be an integer that divides the {batch} samples of g, got "
            f"{terms!r}"
        )
    if weight.dim() != 3 or not 1 <= weight.shape[1] <= 4:
        raise ValueError(
            f"{where}: weight must be (9, 1 to 4 image channels, {channels}), got "
            f"{tuple(weight.shape)}"
        )
    image = weight.shape[1]
    check_dense(where, "weight", weight, (9, image, channels), g.dtype, g.device)
    return batch // terms, image, height, width
