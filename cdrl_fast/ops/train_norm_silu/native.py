"""`train_norm_silu` in C++ (csrc/cpu/train/norm_silu.cpp) as a function of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdrl_fast._extension import addresses, module

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
        ctx.groups, ctx.activate = groups, activate
        module().train_norm_silu(
            *_sizes(x, groups), activate, *addresses(x, weight, bias, row, moments, y),
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, weight, bias, row, _ = saved
        y_grad = y_grad.contiguous(memory_format=torch.channels_last)
        gradients = [None if t is None else torch.empty_like(t) for t in (x, weight, bias, row)]
        module().train_norm_silu_gradients(
            *_sizes(x, ctx.groups), ctx.activate, *addresses(*saved, y_grad, *gradients),
            torch.get_num_threads(),
        )  # fmt: skip
        return *gradients, None, None


def _sizes(x: Tensor, groups: int) -> tuple[int, ...]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels, groups
