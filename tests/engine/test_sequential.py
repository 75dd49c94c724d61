"""Modules that `program_of` converts, and modules that it leaves alone."""

from functools import partial

import pytest
import torch
from torch import nn

from cdrl_fast.engine.sequential import program_of
from cdrl_fast.ops.mlp_chain import value, value_and_gradient


def energy(*layers, dim=2, width=9):
    return nn.Sequential(nn.Linear(dim, width), *layers, nn.Linear(width, 1), nn.Flatten(0))


PROGRAMS = {
    "relu": lambda: energy(nn.ReLU()),
    "relu in place": lambda: energy(nn.ReLU(inplace=True)),
    "leaky": lambda: energy(nn.LeakyReLU(0.3)),
    "silu": lambda: energy(nn.SiLU()),
    "tanh": lambda: energy(nn.Tanh()),
    "softplus": lambda: energy(nn.Softplus()),
    "sigmoid": lambda: energy(nn.Sigmoid(), dim=5),
    "linear": lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 1), nn.Flatten(-2, -1)),
    "two linear maps": lambda: energy(),
    "no bias": lambda: nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0, 1)),
    "deep": lambda: energy(nn.SiLU(), nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 9), nn.ReLU()),
    "nested": lambda: nn.Sequential(energy(nn.SiLU()), nn.Identity()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_sequences_that_are_programs(name):
    torch.manual_seed(0)
    module = PROGRAMS[name]().double()
    program = program_of(module)
    assert program is not None
    y = torch.randn(30, program.dim, dtype=torch.float64, requires_grad=True)
    expected = module(y)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), y)
    actual, gradient = value_and_gradient(program, y.detach())
    assert (actual - expected).abs().max() < 1e-12
    assert (gradient - expected_gradient).abs().max() < 1e-12
    assert (value(program, y) - expected).abs().max() < 1e-12
    assert torch.equal(program.tensors[-1], module.get_parameter(_last_weight(module))[0])


def _last_weight(module):
    return [name for name, p in module.named_parameters() if p.dim() == 2][-1]


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(add, inner=0):
    module = energy(nn.SiLU())
    getattr(module if inner is None else module[inner], add)(lambda *a: None)
    return module


def overridden():
    module = energy(nn.SiLU())
    module[0].forward = lambda x: x.new_zeros(len(x), 9)
    return module


def parametrized(wrap):
    module = energy(nn.SiLU())
    wrap(module[0])
    return module


OTHERS = {
    "not a module": lambda: torch.sum,
    "another module": lambda: nn.Linear(2, 1),
    "no flatten": lambda: nn.Sequential(nn.Linear(2, 1)),
    "flatten alone": lambda: nn.Sequential(nn.Flatten(0)),
    "empty": nn.Sequential,
    "flatten keeps the batch": lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten()),
    "two outputs": lambda: nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)),
    "two activations": lambda: energy(nn.ReLU(), nn.Tanh()),
    "activation last": lambda: nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Flatten(0)),
    "in place on the state": lambda: nn.Sequential(
        nn.ReLU(inplace=True), nn.Linear(2, 1), nn.Flatten(0)
    ),
    "dropout": lambda: energy(nn.Dropout(0.0)),
    "gelu": lambda: energy(nn.GELU()),
    "softplus of another beta": lambda: energy(nn.Softplus(beta=2.0)),
    "widths that do not meet": lambda: energy(nn.Linear(9, 8)),
    "a subclass": lambda: nn.Sequential(Twice(2, 1), nn.Flatten(0)),
    "half": lambda: energy(nn.SiLU()).half(),
    "mixed": lambda: nn.Sequential(nn.Linear(2, 3).double(), nn.Linear(3, 1), nn.Flatten(0)),
    "a forward of its own": overridden,
    "spectral norm": lambda: parametrized(nn.utils.parametrizations.spectral_norm),
    "old spectral norm": lambda: parametrized(nn.utils.spectral_norm),
    "forward hook": partial(hooked, "register_forward_hook"),
    "forward hook of the sequence": partial(hooked, "register_forward_hook", None),
    "forward pre-hook": partial(hooked, "register_forward_pre_hook", 1),
    "backward hook": partial(hooked, "register_full_backward_hook"),
    "backward pre-hook": partial(hooked, "register_full_backward_pre_hook"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules_are_no_programs(name):
    assert program_of(OTHERS[name]()) is None


def test_hooks_on_every_module():
    module = energy(nn.SiLU())
    assert program_of(module) is not None
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert program_of(module) is None
    finally:
        handle.remove()
