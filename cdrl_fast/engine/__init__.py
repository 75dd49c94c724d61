"""Frozen copies of networks that compute proposals and gradients fast, for Langevin chains."""

from cdrl_fast.engine.frozen import FrozenModel, LevelEnergy
from cdrl_fast.engine.select import chain_precision, frozen_energy
from cdrl_fast.engine.terms import Terms

__all__ = ["FrozenModel", "LevelEnergy", "Terms", "chain_precision", "frozen_energy"]
