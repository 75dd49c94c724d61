"""Programs of `mlp_chain`: energies as linear maps, activations and sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("identity", "leaky_relu", "silu", "tanh", "softplus", "sigmoid")


@dataclass(frozen=True)
class Activation:
    """An elementwise activation function.

    Attributes:
        kind: one of `KINDS`; softplus is ln(1 + eˣ) for every x.
        slope: slope of leaky_relu below zero; 0 is relu. The derivative at zero is ``slope``.
    """

    kind: str = "identity"
    slope: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Activation: kind must be one of {KINDS}, got {self.kind!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function of each element; same shape and dtype."""
        match self.kind:
            case "leaky_relu":
                return torch.where(x > 0, x, self.slope * x)
            case "silu":
                return x * torch.sigmoid(x)
            case "tanh":
                return torch.tanh(x)
            case "softplus":
                return F.relu(x) + torch.log1p(torch.exp(-x.abs()))
            case "sigmoid":
                return torch.sigmoid(x)
        return x

    def derivative(self, x: Tensor) -> Tensor:
        """Return the derivative at each element; same shape and dtype."""
        match self.kind:
            case "leaky_relu":
                return torch.full_like(x, self.slope).masked_fill(x > 0, 1.0)
            case "silu":
                s = torch.sigmoid(x)
                return s * (1 + x * (1 - s))
            case "tanh":
                return 1 - torch.tanh(x) ** 2
            case "softplus":
                return torch.sigmoid(x)
            case "sigmoid":
                s = torch.sigmoid(x)
                return s * (1 - s)
        return torch.ones_like(x)


IDENTITY = Activation()
RELU = Activation("leaky_relu", 0.0)


@dataclass(frozen=True, eq=False)
class Linear:
    """Instruction buffer[target] += activation(buffer[source]) · weightᵀ + bias.

    Attributes:
        source, target: indices of buffers.
        weight: (out, in).
        bias: (out,), a slice of a call's ``rows``, or None.
        activation: applied to the source.
    """

    source: int
    target: int
    weight: Tensor
    bias: Tensor | slice | None = None
    activation: Activation = IDENTITY


@dataclass(frozen=True)
class Add:
    """Instruction buffer[target] += buffer[source]."""

    source: int
    target: int


Instruction = Linear | Add


@dataclass(frozen=True, eq=False)
class Program:
    """An energy f(y) = head · activation(last buffer) + constant, one number per sample.

    Buffer 0 is the state y; the others start at zero and contain pre-activations. All tensors have
    the same floating dtype and device.

    Attributes:
        widths: features of each buffer; widths[0] is the state's dimension.
        instructions: run in order; none writes a buffer after it was read.
        head: (widths[-1],).
        activation: applied to the last buffer.
        constant: added to the value.

    Raises:
        ValueError: instructions or shapes do not fit together.
        TypeError: tensors differ in dtype or device, or are not floating-point.
    """

    widths: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    head: Tensor = field(repr=False)
    activation: Activation = IDENTITY
    constant: float = 0.0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"Program: widths must be positive, got {self.widths}")
        self._check_order()
        self._check_tensors()

    @property
    def dim(self) -> int:
        """Dimension of the state."""
        return self.widths[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of all tensors."""
        return self.head.dtype

    @cached_property
    def rows(self) -> int:
        """Number of columns of a call's ``rows``; 0 if no bias is a slice."""
        slices = [linear.bias for linear in self.linears if isinstance(linear.bias, slice)]
        return max((bias.stop for bias in slices), default=0)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Linear maps in order."""
        return tuple(i for i in self.instructions if isinstance(i, Linear))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All weights, static biases and the head."""
        biases = [linear.bias for linear in self.linears if isinstance(linear.bias, Tensor)]
        return (*(linear.weight for linear in self.linears), *biases, self.head)

    def _check_order(self) -> None:
        buffers, written, read = range(len(self.widths)), {0}, set()
        for number, step in enumerate(self.instructions):
            where = f"Program: instruction {number}"
            if step.source not in buffers or step.target not in buffers:
                raise ValueError(
                    f"{where}: buffers must be 0 to {len(buffers) - 1}, got source {step.source} "
                    f"and target {step.target}"
                )
            if step.source not in written:
                raise ValueError(f"{where} reads buffer {step.source}, which is not written before")
            if step.target == 0 or step.target == step.source or step.target in read:
                raise ValueError(f"{where} writes buffer {step.target} after it was read")
            written.add(step.target)
            read.add(step.source)
        if read != set(buffers[:-1]):
            raise ValueError("Program: instructions must read every buffer except the last")

    def _check_tensors(self) -> None:
        for number, step in enumerate(self.instructions):
            ins, outs = self.widths[step.source], self.widths[step.target]
            where = f"Program: instruction {number}"
            if isinstance(step, Add):
                if ins != outs:
                    raise ValueError(f"{where} adds {ins} features to {outs}; they must be equal")
                continue
            if step.weight.shape != (outs, ins):
                raise ValueError(
                    f"{where}: weight must be {(outs, ins)}, got {tuple(step.weight.shape)}"
                )
            bias = step.bias
            if isinstance(bias, Tensor) and bias.shape != (outs,):
                raise ValueError(f"{where}: bias must be ({outs},), got {tuple(bias.shape)}")
            if isinstance(bias, slice) and (
                bias.step not in (None, 1)
                or not isinstance(bias.start, int)
                or bias.start < 0
                or bias.stop != bias.start + outs
            ):
                raise ValueError(f"{where}: bias must be a slice of {outs} columns, got {bias}")
        if self.head.shape != (self.widths[-1],):
            raise ValueError(
                f"Program: head must be ({self.widths[-1]},), got {tuple(self.head.shape)}"
            )
        kinds = {(t.dtype, t.device) for t in self.tensors}
        if len(kinds) != 1 or not self.head.is_floating_point():
            raise TypeError(
                f"Program: tensors must share one floating dtype and device, got {kinds}"
            )
