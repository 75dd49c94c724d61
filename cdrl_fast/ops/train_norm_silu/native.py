"""`train_norm_silu` in C++ (csrc/cpu/train/norm_silu.cpp) as a function of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdrl_fast._extension import address, module

BLOCK = 16
"""Numbers of channels are multiples of it."""


class TrainNormSilu(torch.autograd.Function):
    """Norm that stores its inputs, and the mean and deviation of each group."""

    @staticmethod
    def run(
        x: Tensor, weight: Tensor, bias: Tensor, row: Tensor | None, groups: int, activate: bool
    ) -> Tensor:
        """Return the result; the arguments have been checked."""
        row = None if row is None else row.contiguous()
        result: Tensor = TrainNormSilu.apply(  # type: ignore[no-untyped-call]
            x.contiguous(memory_format=torch.channels_last),
            weight.contiguous(),
            bias.contiguous(),
            row,
            groups,
            activate,
        )
        return result

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        row: Tensor | None,
        groups: int,
        activate: bool,
    ) -> Tensor:
        moments, y = x.new_empty(x.shape[0], 2 * groups), torch.empty_like(x)
        ctx.save_for_backward(x, weight, bias, row, moments)
        ctx.activate = activate
        norm = _arguments(x, weight, bias, row, moments, activate)
        module().train_norm_silu(norm, y=y.data_ptr(), threads=torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, row, moments = ctx.saved_tensors
        y_grad = y_grad.contiguous(memory_format=torch.channels_last)
        gradients = [None if t is None else torch.empty_like(t) for t in (x, weight, bias, row)]
        x_grad, weight_grad, bias_grad, row_grad = map(address, gradients)
        to = module().NormSiluGradients(
            y=y_grad.data_ptr(), x=x_grad, weight=weight_grad, bias=bias_grad, row=row_grad
        )
        norm = _arguments(x, weight, bias, row, moments, ctx.activate)
        module().train_norm_silu_gradients(norm, to=to, threads=torch.get_num_threads())
        return *gradients, None, None


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor, row: Tensor | None, moments: Tensor, activate: bool
) -> Any:
    batch, channels, height, width = x.shape
    return module().NormSilu(
        batch=batch,
        positions=height * width,
        channels=channels,
        groups=moments.shape[1] // 2,
        activate=activate,
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        row=address(row),
        moments=moments.data_ptr(),
    )
