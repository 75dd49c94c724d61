"""Conversion of a user's `torch.nn.Sequential` to a program for `ops.mlp_chain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from cdrl_fast.ops.mlp_chain import IDENTITY, RELU, Activation, Linear, Program
from cdrl_fast.ops.mlp_chain.program import Instruction

_PLAIN = {nn.ReLU: RELU, nn.SiLU: Activation("silu"), nn.Tanh: Activation("tanh")}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def program_of(module: object) -> Program | None:
    """Return a ``torch.nn.Sequential`` as a program, or None if it has no such form.

    Its layers must be linear maps and ReLU, LeakyReLU, SiLU, Tanh, Softplus (beta 1) or Sigmoid,
    never two activations in a row. It must end in a linear map to one feature and ``Flatten(0)``,
    so that its output is (batch,). Subclasses, hooks, parametrizations, and parameters that are not
    all float32 or all float64 do not fit. The program shares the module's parameters. A program is
    returned as it is.
    """
    if isinstance(module, Program):
        return module
    if type(module) is not nn.Sequential or _global_hooks():
        return None
    layers = list(_leaves(module))
    if len(layers) < 2 or not all(map(_is_plain, layers)) or not _flattens(layers[-1]):
        return None
    head = layers[-2]
    if type(head) is not nn.Linear or head.out_features != 1:
        return None
    steps: list[Instruction] = []
    widths, activation = [head.in_features], IDENTITY
    for position, layer in enumerate(layers[:-2]):
        if type(layer) is nn.Linear:
            widths = widths if steps else [layer.in_features]
            if widths[-1] != layer.in_features:
                return None
            source = len(steps)
            bias = None if layer.bias is None else layer.bias.detach()
            steps.append(Linear(source, source + 1, layer.weight.detach(), bias, activation))
            widths.append(layer.out_features)
            activation = IDENTITY
            continue
        following = _activation(layer)
        # Autograd raises if the module writes into the state; leave that error to it.
        first_in_place = position == 0 and getattr(layer, "inplace", False)
        if following is None or activation != IDENTITY or first_in_place:
            return None
        activation = following
    if widths[-1] != head.in_features:
        return None
    constant = 0.0 if head.bias is None else float(head.bias.detach())
    # `parameters()` would search each layer for layers inside, which takes longer than a step.
    tensors = [t for layer in layers for t in layer._parameters.values() if t is not None]
    if not _fit(tensors):
        return None
    return Program(tuple(widths), tuple(steps), head.weight.detach()[0], activation, constant)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of nested sequences in order; a sequence with hooks is one module."""
    if type(module) is nn.Sequential and _is_plain(module):
        for child in module:
            yield from _leaves(child)
    elif type(module) is not nn.Identity or not _is_plain(module):
        yield module


def _is_plain(module: nn.Module) -> bool:
    """Return whether calling the module runs its class's own forward and nothing else."""
    return "forward" not in vars(module) and not any(getattr(module, name) for name in _HOOKS)


def _global_hooks() -> bool:
    """Return whether torch runs hooks on every module."""
    return any(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def _flattens(layer: nn.Module) -> bool:
    """Return whether the layer maps (batch, 1) to (batch,)."""
    if type(layer) is not nn.Flatten:
        return False
    return layer.start_dim in (0, -2) and layer.end_dim in (1, -1)


def _activation(layer: nn.Module) -> Activation | None:
    """Return the layer as an activation, or None if it is not one that programs have."""
    if type(layer) is nn.LeakyReLU:
        return Activation("leaky_relu", layer.negative_slope)
    if type(layer) is nn.Softplus:
        return Activation("softplus") if layer.beta == 1 else None
    if type(layer) is nn.Sigmoid:
        return Activation("sigmoid")
    return _PLAIN.get(type(layer))


def _fit(tensors: Sequence[Tensor]) -> bool:
    """Return whether all are plain tensors on one device, all float32 or all float64."""
    first = tensors[0]
    return first.dtype in (torch.float32, torch.float64) and all(
        type(t) in (Tensor, nn.Parameter)
        and (t.dtype, t.device, t.layout) == (first.dtype, first.device, torch.strided)
        for t in tensors
    )
