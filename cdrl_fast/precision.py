"""In which precision a chain computes: its state, and the networks' insides."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from cdrl_fast._extension import load

GPU_PRECISIONS = ("tf32", "fp16")
"""Those that only a GPU's tensor cores compute in."""

EXACT = ("fp64", "fp32")
"""Those in which energies of neighbouring states can be compared."""

_DTYPES = {
    "fp64": (torch.float64, torch.float64),
    "fp32": (torch.float32, torch.float32),
    "tf32": (torch.float32, torch.float32),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}
PrecisionName = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
NAMES = get_args(PrecisionName)


@dataclass(frozen=True)
class Precision:
    """In which dtypes a chain or a training iteration computes: mixed precision by one name.

    Args:
        name: "fp64", "fp32", "tf32", "bf16" or "fp16".

    Raises:
        ValueError: another name.

    Examples:
        >>> import torch
        >>> from cdrl_fast import Precision
        >>> precision = Precision("bf16")
        >>> precision.state, precision.network
        (torch.float32, torch.bfloat16)
        >>> with precision.autocast("cpu"):
        ...     torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype
        torch.bfloat16
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _DTYPES:
            raise ValueError(f"precision: expected one of {tuple(_DTYPES)}, got {self.name!r}")

    @property
    def state(self) -> torch.dtype:
        """Of the chain's state, of sums, of parameters and of all that is not a network."""
        return _DTYPES[self.name][0]

    @property
    def network(self) -> torch.dtype:
        """Of the inputs and weights of convolutions and linear maps."""
        return _DTYPES[self.name][1]

    @property
    def half(self) -> bool:
        """Whether the networks compute in fewer bits than the state has."""
        return self.network != self.state

    @property
    def fp32_precision(self) -> str:
        """How tensor cores take float32: "tf32" or "ieee"."""
        return "tf32" if self.name == "tf32" else "ieee"

    def autocast(self, device: torch.device | str) -> AbstractContextManager[object]:
        """A block in which modules' products on ``device`` are in ``network``, weights as they are.

        Nothing changes where ``network`` is ``state``.
        """
        if not self.half:
            return nullcontext()
        return torch.autocast(torch.device(device).type, self.network)

    def scaler(self, device: torch.device | str) -> torch.amp.GradScaler:
        """Scales losses on ``device``, so that float16's gradients do not vanish; else idle."""
        return torch.amp.GradScaler(torch.device(device).type, enabled=self.name == "fp16")


def resolve(name: str, device: torch.device, *, planned: bool) -> Precision:
    """The precision that a name stands for.

    Args:
        name: one of `NAMES`. "auto" is bfloat16 where the processor multiplies it (AVX512-BF16)
            and the energy has compiled kernels, and float32 elsewhere.
        device: where the chain runs.
        planned: whether the energy's gradient has compiled kernels there.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"precision: expected one of {NAMES}, got {name!r}")
    if name == "auto":
        name = "bf16" if planned and device.type == "cpu" and fast_bfloat16() else "fp32"
    return Precision(name)


def fast_bfloat16() -> bool:
    """Whether the compiled module runs bfloat16 products at twice float32's rate here."""
    module = load()
    return module is not None and module.cpu_variant() == "avx512bf16"
