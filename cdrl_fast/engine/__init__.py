"""From networks to fast proposals and gradients, for chains that never train them."""

from cdrl_fast.engine.fallback import FrozenModel, Terms

__all__ = ["FrozenModel", "Terms"]
