"""In which precision a chain computes: its state, and the networks' insides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cdrl_fast._native import load

NAMES = ("auto", "fp64", "fp32", "tf32", "bf16", "fp16")
ON_GPUS = ("tf32", "fp16")
"""Those that only a GPU's tensor cores compute in."""


@dataclass(frozen=True)
class Precision:
    """Dtypes of a chain.

    Attributes:
        name: "fp64", "fp32", "tf32", "bf16" or "fp16".
        state: of the chain's state, of sums and of all that is not a network.
        network: of the inputs and weights of convolutions and linear maps.
    """

    name: str
    state: torch.dtype
    network: torch.dtype

    @property
    def half(self) -> bool:
        """Whether the networks compute in fewer bits than the state has."""
        return self.network != self.state

    @property
    def products(self) -> str:
        """How tensor cores take float32: "tf32" or "ieee"."""
        return "tf32" if self.name == "tf32" else "ieee"


_PRECISIONS = {
    "fp64": Precision("fp64", torch.float64, torch.float64),
    "fp32": Precision("fp32", torch.float32, torch.float32),
    "tf32": Precision("tf32", torch.float32, torch.float32),
    "bf16": Precision("bf16", torch.float32, torch.bfloat16),
    "fp16": Precision("fp16", torch.float32, torch.float16),
}


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
    return _PRECISIONS[name]


def fast_bfloat16() -> bool:
    """Whether the compiled module runs bfloat16 products at twice float32's rate here."""
    module = load()
    return module is not None and module.cpu_variant() == "avx512bf16"
