"""Folding: static weights with spectral norms, gains and level inputs multiplied in once."""
