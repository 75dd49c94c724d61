"""Registration of `torch.ops.cdrl_fast.normal_`."""

from __future__ import annotations

from torch import Tensor

from cdrl_fast.ops.dispatch import choose
from cdrl_fast.ops.normal import native, reference
from cdrl_fast.ops.registration import register


def _run(out: Tensor, seed: int, draw: int, first_sample: int, backend: str) -> None:
    chosen = choose("normal", backend, out.device, out.dtype)
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


normal_ = register(
    "normal_(Tensor(a!) out, SymInt seed, SymInt draw, SymInt first_sample, str backend) -> ()",
    _run,
)
"""Operation that fills a dense tensor (samples, …); ``seed`` is in [-2⁶³, 2⁶³)."""
