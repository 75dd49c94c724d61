"""Static weights: spectral norms, gains and level inputs folded once."""
