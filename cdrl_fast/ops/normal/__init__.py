"""The noise stream: normals as a pure function of seed, draw, sample and element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.normal import native, reference
from cdrl_fast.ops.philox import check_stream_position, signed
from cdrl_fast.ops.registration import register

BACKENDS = ("native", "cuda", "triton", "reference")
"""Backends in order of preference."""


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    draw: int,
    first_sample: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Draw standard normal noise that depends only on seed, draw, sample and element.

    Sample ``first_sample + i`` has the same noise in every batch, on every device and for any
    number of processes. Computed by Philox4x32-10 and Box–Muller.

    Args:
        shape: (samples, …); elements are counted within a sample, in C order.
        seed: integer from -2⁶³ to 2⁶⁴ - 1.
        draw: number of the draw of this seed, 0 to 2³² - 1.
        first_sample: index of the first sample, 0 to 2⁶³ - 1.
        device: device of the result; torch's default if None.
        dtype: float32 or float64.
        backend: "native" (C++, on CPUs), "cuda", "triton", "reference", or "auto", the first of
            these that is available. float64 is computed by the reference.

    Returns:
        Tensor of ``shape`` and ``dtype``.

    Raises:
        ValueError: an argument is out of range.
        TypeError: seed, draw or first_sample is not an integer.
        BackendUnavailable: ``backend`` names a backend that is not available.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples:
        >>> import cdrl_fast
        >>> a = cdrl_fast.normal((4, 3), seed=1, draw=0)
        >>> bool((a[2:] == cdrl_fast.normal((2, 3), seed=1, draw=0, first_sample=2)).all())
        True
    """
    shape = tuple(shape)
    if not torch.compiler.is_compiling():
        if not shape or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"normal: shape must be (samples, …) of integers >= 0, got {shape}")
        check_stream_position("normal", seed, draw, first_sample, shape[0])
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"normal: dtype must be float32 or float64, got {dtype}")
    out = torch.empty(shape, device=device, dtype=dtype)
    _fill(out, signed(seed), draw, first_sample, backend)
    return out


def _run(out: Tensor, seed: int, draw: int, first_sample: int, backend: str) -> None:
    chosen = choose("normal", backend, out.device, out.dtype, BACKENDS)
    if not out.numel():
        return
    if chosen == "reference":
        position = {"seed": seed, "draw": draw, "first_sample": first_sample}
        out.copy_(reference.normal(out.shape, device=out.device, dtype=out.dtype, **position))
    elif chosen == "triton":
        from cdrl_fast.ops.normal import triton_kernel

        triton_kernel.normal(out, seed, draw, first_sample)
    else:
        native.normal(out, seed, draw, first_sample)


_fill = register(
    "normal_(Tensor(a!) out, SymInt seed, SymInt draw, SymInt first_sample, str backend) -> ()",
    _run,
)
"""Operation that fills a dense tensor (samples, …); ``seed`` is in [-2⁶³, 2⁶³)."""
