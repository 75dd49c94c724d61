"""Operations: each a folder with its meaning (reference.py) and, where it has any, its kernels."""

from cdrl_fast.ops.langevin_step import langevin_step, langevin_step_
from cdrl_fast.ops.normal import normal
from cdrl_fast.ops.philox import rng_state

__all__ = ["langevin_step", "langevin_step_", "normal", "rng_state"]
