"""Frozen copies of networks that compute proposals and gradients fast, for Langevin chains."""

from cdrl_fast.engine.frozen import FrozenModel
from cdrl_fast.engine.select import chain_precision, frozen_energy
from cdrl_fast.engine.steps import Context, EnergyAt, take_steps
from cdrl_fast.engine.terms import Terms

__all__ = [
    "Context",
    "EnergyAt",
    "FrozenModel",
    "Terms",
    "chain_precision",
    "frozen_energy",
    "take_steps",
]
