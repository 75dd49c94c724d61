"""Precisions: dtypes of a chain's state and of its networks, by one name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from cdrl_fast._extension import load

# Imported where it is used: the command line's help, which has the names, loads no torch.
if TYPE_CHECKING:
    import torch

GPU_PRECISIONS = ("tf32", "fp16")
"""Precisions that need a GPU's tensor cores."""

EXACT = ("fp64", "fp32")
"""Precisions exact enough to compare the energies of neighbouring states."""

_DTYPES = {
    "fp64": ("float64", "float64"),
    "fp32": ("float32", "float32"),
    "tf32": ("float32", "float32"),
    "bf16": ("float32", "bfloat16"),
    "fp16": ("float32", "float16"),
}
"""Names in torch of the dtypes of state and networks."""
PrecisionName = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]
NAMES = get_args(PrecisionName)


@dataclass(frozen=True)
class Precision:
    """Dtypes in which a chain or a training iteration computes: mixed precision by one name.

    Args:
        name: "fp64", "fp32", "tf32", "bf16" or "fp16".

    Raises:
        ValueError: the name is another.

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
        """Dtype of the chain's state, of sums, of parameters and of all outside the networks."""
        return self._dtypes[0]

    @property
    def network(self) -> torch.dtype:
        """Dtype of the inputs and weights of convolutions and linear maps."""
        return self._dtypes[1]

    @cached_property
    def _dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        import torch

        state, network = _DTYPES[self.name]
        return getattr(torch, state), getattr(torch, network)

    @property
    def half(self) -> bool:
        """Whether the networks compute in fewer bits than the state has."""
        return self.network != self.state

    @property
    def fp32_precision(self) -> str:
        """Float32 matmul precision of tensor cores, as torch names it: "tf32" or "ieee"."""
        return "tf32" if self.name == "tf32" else "ieee"

    def autocast(self, device: torch.device | str) -> AbstractContextManager[object]:
        """Return a block in which modules' matrix products on ``device`` use `network`.

        Parameters keep their dtype. Without half precision the block changes nothing.
        """
        if not self.half:
            return nullcontext()
        import torch

        return torch.autocast(torch.device(device).type, self.network)

    def scaler(self, device: torch.device | str) -> torch.amp.GradScaler:
        """Return a scaler of losses on ``device``, which is idle except under float16.

        It keeps small float16 gradients from becoming 0.
        """
        import torch

        return torch.amp.GradScaler(torch.device(device).type, enabled=self.name == "fp16")


def resolve(name: str, device: torch.device, *, has_kernels: bool) -> Precision:
    """Return the precision that a name stands for.

    Args:
        name: one of `NAMES`. "auto" is "bf16" if the processor multiplies bfloat16 (AVX512-BF16)
            and the energy has compiled kernels, else "fp32".
        device: where the chain runs.
        has_kernels: whether the energy's gradient has compiled kernels on ``device``.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"precision: expected one of {NAMES}, got {name!r}")
    if name == "auto":
        name = "bf16" if has_kernels and device.type == "cpu" and fast_bfloat16() else "fp32"
    return Precision(name)


def fast_bfloat16() -> bool:
    """Return whether the compiled module multiplies bfloat16 at twice float32's rate here."""
    module = load()
    return module is not None and module.cpu_variant() == "avx512bf16"
