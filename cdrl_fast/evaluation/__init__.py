"""Quality of samples against data: figures, sweeps over options, tuned step plans."""
