"""Level embedding, labels, dropout and input checks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdrl_fast.networks.recompute import Recomputing

LEAK = 0.2
Classes = int | Sequence[str]


def leaky(x: Tensor) -> Tensor:
    """Return LeakyReLU of x with slope 0.2, the energy networks' activation."""
    return F.leaky_relu(x, LEAK)


def level_input(logsnr: Tensor) -> Tensor:
    """Return u = arctan(exp(-clamp(logsnr, ±20)/2)) / (π/2), in [0, 1]; same shape and dtype."""
    return torch.arctan(torch.exp(-0.5 * logsnr.clamp(-20.0, 20.0))) / (math.pi / 2)


def level_embedding(logsnr: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding of 1000·u(logsnr): (batch,) → (batch, dim), sines first.

    The dim/2 frequencies are exp(-ln(10000)·i/(dim/2 - 1)).
    """
    half = dim // 2
    index = torch.arange(half, device=logsnr.device, dtype=logsnr.dtype)
    angle = 1000.0 * level_input(logsnr)[:, None] * torch.exp(index * (-math.log(1e4) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def without_autocast(weight: Tensor) -> AbstractContextManager[object]:
    """Disable autocast in a block, unless ``weight`` is half precision or a meta tensor.

    For cheap operations whose rounding errors would multiply into everything after them.

    In bfloat16 the embedding and the head make most of a training gradient's error: with them the
    error is 0.34 of a batch's gradient (the shipped digits model), without them 0.16.
    """
    if weight.is_meta or weight.dtype in (torch.float16, torch.bfloat16):
        return nullcontext()
    return torch.autocast(weight.device.type, enabled=False)


class StreamDropout(nn.Module):
    """Dropout whose mask may come from a noise stream instead of torch's global generator.

    Attributes:
        p: probability that an element is dropped.
        uniform: None, or a function that takes the input's shape and returns uniform numbers of
            that shape; an element is dropped where its number is below ``p``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.uniform: Callable[[torch.Size], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x with elements dropped and the others divided by 1 - p; x itself in eval mode."""
        if not self.training or self.p == 0.0:
            return x
        if self.uniform is None:
            return F.dropout(x, self.p)
        return x * (self.uniform(x.shape) >= self.p) / (1.0 - self.p)


@contextmanager
def dropout_from(
    network: nn.Module, uniform: Callable[[torch.Size, int], Tensor]
) -> Iterator[None]:
    """Draw the j-th dropout layer's mask from ``uniform(shape, j)`` within the block."""
    layers = [m for m in network.modules() if isinstance(m, StreamDropout)]
    for j, layer in enumerate(layers):
        layer.uniform = partial(lambda j, shape: uniform(shape, j), j)
    try:
        yield
    finally:
        for layer in layers:
            layer.uniform = None


def class_names(classes: Classes) -> tuple[str, ...] | int:
    """Return ``classes`` as a configuration stores it: a number, or a tuple of distinct names."""
    if isinstance(classes, int):
        if classes < 0:
            raise ValueError(f"classes: expected a number of classes or their names, got {classes}")
        return classes
    names = tuple(str(name) for name in classes)
    if len(set(names)) != len(names):
        raise ValueError(f"classes: expected distinct names, got {names}")
    return names


def count_classes(classes: Classes) -> int:
    """Return the number of classes; 0 for an unconditional network."""
    return classes if isinstance(classes, int) else len(classes)


def one_hot(label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return labels as one-hot rows: (batch,) → (batch, classes + 1); label 0 is "no label"."""
    return F.one_hot(label.long(), classes + 1).to(dtype)


class Conditional(Recomputing):
    """A network with ``forward(y, logsnr, label)``: checks its input, stores its configuration.

    ``logsnr`` and ``label`` have one entry per sample, or a single one for the batch: then what
    depends on them alone is computed once.

    Attributes:
        classes: the number of classes, or their names.
        num_classes: the number of classes; 0 for an unconditional network.
        config: the arguments that create the network again.
    """

    def _store_config(self, classes: Classes, **config: Any) -> None:
        self.classes = class_names(classes)
        self.num_classes = count_classes(classes)
        self.config: dict[str, Any] = {**config, "classes": self.classes}

    def _check_label(self, y: Tensor, logsnr: Tensor, label: Tensor | None) -> Tensor | None:
        """Check logsnr and label, and return the label that the network computes with."""
        name = type(self).__name__
        for argument, value in (("logsnr", logsnr), ("label", label)):
            if value is not None and value.shape not in ((y.shape[0],), (1,)):
                raise ValueError(
                    f"{name}: {argument} must have shape ({y.shape[0]},) or (1,), got "
                    f"{tuple(value.shape)}"
                )
        if self.num_classes == 0:
            if label is not None:
                raise ValueError(f"{name}: this network is unconditional; drop the label")
            return None
        if label is None:
            return torch.zeros(1, dtype=torch.long, device=y.device)
        if label.is_floating_point() or label.dtype == torch.bool:
            raise TypeError(f"{name}: label must be integers, got {label.dtype}")
        return label
