"""Operations: one folder each, with the reference in plain PyTorch and the kernels, if any."""

from cdrl_fast.ops.keys import Key
from cdrl_fast.ops.langevin_step import langevin_step, langevin_step_
from cdrl_fast.ops.mlp_chain import mlp_chain_
from cdrl_fast.ops.normal import normal
from cdrl_fast.ops.phase import Phase
from cdrl_fast.ops.philox import rng_state

__all__ = ["Key", "Phase", "langevin_step", "langevin_step_", "mlp_chain_", "normal", "rng_state"]
