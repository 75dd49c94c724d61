"""Training: data, levels, chains, losses, updates, and the folder of a run."""
