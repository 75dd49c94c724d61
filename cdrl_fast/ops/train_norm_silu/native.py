"""`train_norm_silu` in C++ (csrc/cpu/train/norm_silu.cpp), as autograd sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdrl_fast._extension import addresses, module

BLOCK = 16
"""The number of channels is its multiple."""


class TrainNormSilu(torch.autograd.Function):
    """The norm; it keeps what it was given, and a mean and a deviation a group."""

    @staticmethod
    def run(
        x: Tensor, weight: Tensor, bias: Tensor, row: Tensor | None, groups: int, activate: bool
    ) -> Tensor:
        """The result for checked arguments."""
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
        given = ctx.saved_tensors
        x, weight, bias, row, _ = given
        y_grad = y_grad.contiguous(memory_format=torch.channels_last)
        found = [None if t is None else torch.empty_like(t) for t in (x, weight, bias, row)]
        module().train_norm_silu_gradients(
            *_sizes(x, ctx.groups), ctx.activate, *addresses(*given, y_grad, *found),
            torch.get_num_threads(),
        )  # fmt: skip
        return *found, None, None


def _sizes(x: Tensor, groups: int) -> tuple[int, ...]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels, groups
