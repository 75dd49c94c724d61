"""The model: networks and schedule, combinations of densities, released checkpoints."""
