"""From networks to fast proposals and gradients, for chains that never train them."""

from cdrl_fast.engine.frozen import FrozenModel, LevelEnergy, Terms, energy_plan, has_plan

__all__ = ["FrozenModel", "LevelEnergy", "Terms", "energy_plan", "has_plan"]
