"""Chains: from noise to samples, with what may be asked of them."""
