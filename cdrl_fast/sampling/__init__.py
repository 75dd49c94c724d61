"""Sampling: chains from noise to samples, inpainting, log-densities and Langevin dynamics."""
