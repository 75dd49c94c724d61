"""The noise stream in plain torch: Philox4x32-10, uniform, normal and integer random numbers.

A draw is a pure function of (seed, draw, sample, element): key = (low, high 32 bits of the seed),
counter = (element // 4, draw, low, high 32 bits of the sample index), and element e takes output
e mod 4. (seed, draw, first_sample) is a position in the stream.

Source of the generator: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl_fast.errors import check_integer

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Return the four outputs of Philox4x32-10.

    Args:
        counter: four int64 tensors with values in [0, 2³²), of shapes that broadcast.
        key: two integers in [0, 2³²).

    Returns:
        Four int64 tensors with values in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 64-bit product that wraps around has the right bits; the mask removes the sign.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (p1 >> 32 & MASK) ^ c1 ^ k0, (p0 >> 32 & MASK) ^ c3 ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def uint32s(
    samples: int,
    elements: int,
    *,
    seed: int,
    draw: int,
    first_sample: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the stream's uint32 outputs as int64 (samples, ceil(elements / 4), 4)."""
    blocks = -(-elements // 4)
    block = torch.arange(blocks, device=device)[None, :]
    index = (torch.arange(samples, device=device) + first_sample)[:, None]
    # Each part of the counter has only the dimensions along which it varies.
    constant = torch.full((1, 1), draw, device=device, dtype=torch.int64)
    counter = (block, constant, index & MASK, index >> 32 & MASK)
    output = philox4x32(counter, (seed & MASK, seed >> 32 & MASK))
    return torch.stack([part.expand(samples, blocks) for part in output], dim=2)


def uniforms(integers: Tensor) -> Tensor:
    """Return float32(integer)·2⁻³² + 2⁻³³, each rounded to nearest: float32 in (0, 1]."""
    return integers.to(torch.float32) * 2.0**-32 + 2.0**-33


def box_muller(integers: Tensor) -> Tensor:
    """Return normals in float64 from uint32 outputs, both (samples, blocks, 4).

    A pair of outputs with uniforms u, v becomes √(-2 ln u)·(cos 2πv, sin 2πv).
    """
    pairs = uniforms(integers).double().reshape(*integers.shape[:2], 2, 2)
    radius = (-2.0 * pairs[..., 0].log()).sqrt()
    angle = (2.0 * math.pi) * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=3).flatten(2)


def signed(seed: int) -> int:
    """Return the integer in [-2⁶³, 2⁶³) with the same 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63


def check_stream_position(
    operation: str, seed: object, draw: object, first_sample: object, samples: int
) -> None:
    """Raise unless this is a position in the stream that is followed by ``samples`` samples."""
    check_integer(operation, "seed", seed, -(2**63), 2**64)
    check_integer(operation, "draw", draw, 0, 2**32)
    check_integer(operation, "first_sample", first_sample, 0, 2**63 - samples)


def check_rng(operation: str, rng: tuple[int, int, int] | Tensor, x: Tensor) -> None:
    """Raise unless ``rng`` is (seed, draw, first_sample), or an `rng_state` on x's device."""
    if isinstance(rng, Tensor):
        check_int64(operation, "rng", rng, 4, x)
    elif not torch.compiler.is_compiling():
        if len(rng) != 3:
            raise ValueError(
                f"{operation}: rng must be (seed, draw, first_sample) or an rng_state, got {rng!r}"
            )
        check_stream_position(operation, *rng, x.shape[0])


def check_steps(
    operation: str, steps: object, rng: tuple[int, int, int] | Tensor, x: Tensor
) -> None:
    """Raise unless ``rng`` is a valid position for the first of so many steps."""
    check_integer(operation, "steps", steps, 0, 2**32 + 1)
    check_rng(operation, rng, x)
    if not isinstance(rng, Tensor):
        check_integer(operation, "draw + steps", rng[1] + steps, 0, 2**32 + 1)  # type: ignore[operator]


def split_rng(
    rng: tuple[int, int, int] | Tensor,
) -> tuple[tuple[int, int, int], Tensor | None]:
    """Return a position with a `signed` seed, and the `rng_state` that kernels read instead."""
    if isinstance(rng, Tensor):
        return (0, 0, 0), rng
    seed, draw, first_sample = rng
    return (signed(seed), draw, first_sample), None


def check_int64(operation: str, name: str, tensor: Tensor | None, count: int, x: Tensor) -> None:
    """Raise unless ``tensor`` is None, or ``count`` contiguous int64 elements on x's device."""
    if tensor is None:
        return
    if tensor.dtype != torch.int64:
        raise TypeError(f"{operation}: {name} must be int64, got {tensor.dtype}")
    if tensor.numel() != count or tensor.device != x.device or not tensor.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must have {count} elements, contiguous on {x.device}, got "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )


def rng_state(
    *, seed: int, draw: int, first_sample: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return a position in the noise stream, on a device, that kernels read and advance.

    With it a captured CUDA graph draws new noise at each replay.

    Args:
        seed, draw, first_sample: as for `normal`.
        device: device of the kernels that use it.

    Returns:
        int64 (4,): seed, draw, first_sample, and a counter that kernels use internally (0).

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument is not an integer.

    Examples:
        >>> import torch
        >>> from cdrl_fast import ops
        >>> rng, x = ops.rng_state(seed=1, draw=0), torch.zeros(2, 3)
        >>> for _ in range(2):  # new noise in each step
        ...     x = ops.langevin_step(x, -x, None, drift=0.1, pull=0.0, noise_std=0.1, rng=rng)
        >>> int(rng[1])
        2
    """
    check_stream_position("rng_state", seed, draw, first_sample, 0)
    return torch.tensor([signed(seed), draw, first_sample, 0], device=device)


def uniform(
    shape: Sequence[int],
    *,
    seed: int,
    draw: int,
    first_sample: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return uniform float32 numbers in (0, 1] of ``shape``; shape[0] counts the samples."""
    elements = math.prod(shape[1:])
    integers = uint32s(
        shape[0], elements, seed=seed, draw=draw, first_sample=first_sample, device=device
    )
    return uniforms(integers.flatten(1)[:, :elements]).reshape(tuple(shape))


def randint(
    samples: int,
    high: int,
    *,
    seed: int,
    draw: int,
    first_sample: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return one integer in [0, high) per sample: int64 (samples,).

    An output u of the stream, an integer in [0, 2³²), becomes ⌊u · high / 2³²⌋.
    """
    integers = uint32s(samples, 1, seed=seed, draw=draw, first_sample=first_sample, device=device)
    return integers[:, 0, 0] * high >> 32
