"""`train_conv3x3` in C++ (csrc/cpu/train/conv3x3.cpp) as a function of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cdrl_fast._extension import address, module

InputFactory = Callable[[], Tensor]

BLOCK = 16
"""Numbers of channels of the kernels are multiples of it."""


class TrainConv3x3(torch.autograd.Function):
    """Convolution that stores the weight, and x unless ``again`` can compute it."""

    @staticmethod
    def run(x: Tensor, weight: Tensor, bias: Tensor, again: InputFactory | None) -> Tensor:
        """Return the convolution; the arguments have been checked."""
        more_out, more_in = -weight.shape[0] % BLOCK, -weight.shape[1] % BLOCK
        if more_out or more_in:
            # Channels of zeros do not change the result; images have only 1 or 3 channels.
            weight = F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
            y = TrainConv3x3.run(_padded(x), weight, F.pad(bias, (0, more_out)), again)
            return y[:, : weight.shape[0] - more_out]
        result: Tensor = TrainConv3x3.apply(  # type: ignore[no-untyped-call]
            _dense(x), weight.contiguous(), bias.contiguous(), again
        )
        return result

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, again: InputFactory | None
    ) -> Tensor:
        ctx.save_for_backward(None if again else x, weight)
        ctx.again = again
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        module().train_conv3x3(
            _shape(x, weight),
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            bias=bias.data_ptr(),
            y=y.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        if x is None:
            x, ctx.again = _dense(_padded(ctx.again())), None
        y_grad = _dense(y_grad)
        x_grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weight_grad, bias_grad = torch.empty_like(weight), weight.new_empty(weight.shape[0])
        gradients = module().ConvGradients(
            y=y_grad.data_ptr(),
            x=address(x_grad),
            weight=weight_grad.data_ptr(),
            bias=bias_grad.data_ptr(),
        )
        module().train_conv3x3_gradients(
            _shape(x, weight),
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            to=gradients,
            threads=torch.get_num_threads(),
        )
        return x_grad, weight_grad, bias_grad, None


def _padded(x: Tensor) -> Tensor:
    """Return x with channels of zeros up to a multiple of `BLOCK`."""
    more = -x.shape[1] % BLOCK
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _shape(x: Tensor, weight: Tensor) -> Any:
    batch, channels, height, width = x.shape
    return module().ConvShape(
        batch=batch,
        height=height,
        width=width,
        in_channels=channels,
        out_channels=weight.shape[0],
    )
