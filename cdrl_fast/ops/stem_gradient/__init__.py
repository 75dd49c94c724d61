"""Last step of an energy network's input gradient on GPUs, alone or with the Langevin update."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl_fast.ops.coefficients import Coefficient, check_coefficients
from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.layout import check_activations, check_apart, check_dense, sum_dtype
from cdrl_fast.ops.philox import check_int64, check_rng
from cdrl_fast.ops.stem_gradient import reference

BACKENDS = ("triton", "reference")
"""Backends in order of preference."""


def stem_gradient(
    g: Tensor,
    weight: Tensor,
    *,
    terms: int = 1,
    scale: float = 1.0,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the gradient by the images: `stem`'s transposed convolution of g, divided by scale.

    For an energy that is a sum of several terms, g has one batch per term, and their gradients are
    summed.

    Args:
        g: gradient by the convolution's output, times ``scale``; dense (terms·batch, height,
            width, channels), one term's batch after the other, channels a multiple of 32; float16,
            bfloat16, float32 or float64.
        weight: weight of `stem`, dense (9, 1 to 4 image channels, channels) in g's dtype.
        terms: number of terms; their sum is not rounded to g's dtype.
        scale: factor of g, as in `head`; the gradient is divided by it.
        out: the output, dense (batch, image channels, height, width), float32 (float64 for
            float64); must not share memory with g and weight.
        backend: "triton", "reference", or "auto" (the first available one). float64 runs on the
            reference.

    Returns:
        ``out``, or a new tensor. Sums have its dtype.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
        BackendUnavailable: an explicit backend is not available.

    Source: the network of Zhu et al., ICLR 2024.
    """
    shape = _image_shape("stem_gradient", g, weight, terms)
    dtype = sum_dtype(g.dtype)
    out = torch.empty(shape, dtype=dtype, device=g.device) if out is None else out
    check_dense("stem_gradient", "out", out, shape, dtype, g.device)
    check_apart("stem_gradient", "out", out, {"g": g, "weight": weight})
    chosen = choose("stem_gradient", backend, g.device, g.dtype, BACKENDS)
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
    """Apply `langevin_step_` to the images y with `stem_gradient` of g, in one pass over g and y.

    y ← rescale·(y + drift·gradient - pull·(y - anchor) + noise_std·z), with the noise of
    `langevin_step`. The gradient is not divided by a scale of g: divide ``drift`` by it.

    Args:
        y: images, dense (batch, image channels, height, width), float32 (float64 for float64);
            overwritten.
        g, weight, terms: as in `stem_gradient`.
        anchor: x_t of the recovery term, with shape and dtype of ``y`` but memory of its own, or
            None.
        drift, pull, noise_std, rescale: a number, or a tensor of shape (), (1,) or (batch,). The
            kernel reads a single element on y's device, so that replays of a CUDA graph use its
            new value.
        rng: (seed, draw, first_sample) of the noise stream, see `normal`; or an `rng_state` on y's
            device, whose draw the step increases by one.
        first_bad: as in `langevin_step`.
        backend: as in `stem_gradient`.

    Returns:
        ``y``.

    Raises:
        ValueError, TypeError, BackendUnavailable: as in `stem_gradient`.

    Source: Langevin dynamics of a recovery likelihood (Gao et al., ICLR 2021).
    """
    operation = "stem_langevin_"
    coefficients = (drift, pull, noise_std, rescale)
    shape = _image_shape(operation, g, weight, terms)
    check_dense(operation, "y", y, shape, sum_dtype(g.dtype), g.device)
    check_dense(operation, "anchor", anchor, shape, y.dtype, g.device)
    check_apart(operation, "y", y, {"g": g, "weight": weight, "anchor": anchor})
    check_coefficients(operation, coefficients, shape[0], anchor)
    check_int64(operation, "first_bad", first_bad, 1, y)
    check_rng(operation, rng, y)
    chosen = choose(operation, backend, y.device, y.dtype, BACKENDS)
    if chosen == "reference" or not y.numel():
        reference.stem_langevin_(y, g, weight, terms, anchor, coefficients, rng, first_bad)
        return y
    from cdrl_fast.ops.stem_gradient import triton_kernel

    triton_kernel.stem_langevin_(y, g, weight, terms, anchor, coefficients, rng, first_bad)
    return y


def _image_shape(
    operation: str, g: Tensor, weight: Tensor, terms: int
) -> tuple[int, int, int, int]:
    """Check g, weight and terms; return the images' shape."""
    check_activations(operation, "g", g)
    batch, height, width, channels = g.shape
    if not isinstance(terms, int) or terms < 1 or batch % terms:
        raise ValueError(
            f"{operation}: terms must be an integer that divides the {batch} samples of g, got "
            f"{terms!r}"
        )
    if weight.dim() != 3 or not 1 <= weight.shape[1] <= 4:
        raise ValueError(
            f"{operation}: weight must be (9, 1 to 4 image channels, {channels}), got "
            f"{tuple(weight.shape)}"
        )
    image = weight.shape[1]
    check_dense(operation, "weight", weight, (9, image, channels), g.dtype, g.device)
    return batch // terms, image, height, width
