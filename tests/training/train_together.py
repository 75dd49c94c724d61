"""One process of a torchrun training run: ``train_together.py OUT OPTIONS``, options as JSON."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from cdrl_fast import CDRL, NoiseSchedule, ResNetEnergy, Trainer, UNetInitializer
from cdrl_fast.data import Dataset
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.distributed import process_group

CONFIG = {
    "batch_size": 8, "energy_lr": 1e-3, "initializer_lr": 1e-3, "warmup": 10, "ema_decay": 0.9,
    "precision": "fp64", "flip": True, "checkpoint_every": 5, "log_every": 1,
}  # fmt: skip


def trainer(config: TrainConfig | None = None) -> Trainer:
    """Return a trainer of a tiny conditional model with dropout, in the config's precision."""
    config = config or TrainConfig(**CONFIG)
    torch.manual_seed(0)
    model = CDRL(
        ResNetEnergy(1, 8, (1, 2), 1, classes=2),
        UNetInitializer(1, 8, 8, (1,), 1, (8,), 0.1, classes=2),
        NoiseSchedule(levels=3, steps=4),
        sample_shape=(1, 8, 8),
    )
    return Trainer(model.double() if config.precision == "fp64" else model, images(), config)


def images() -> Dataset:
    """Return twenty random images of two classes."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    return Dataset("random", values, rng.integers(1, 3, 20), ("zero", "one"))


def main() -> None:
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        config = TrainConfig(**{**CONFIG, **options["config"]})
        resume = options.get("resume")
        ours = Trainer.resume(out, images(), config=config) if resume else trainer(config)
        at, rank = ours.batches.at, int(os.environ["RANK"])

        def batch(iteration):
            """Send a SIGTERM to the last process, or give it a batch of NaN."""
            x0, label = at(iteration)
            if rank > 0 and iteration == options.get("sigterm"):
                os.kill(os.getpid(), signal.SIGTERM)
            if rank > 0 and ours.rollbacks == 0 and iteration in options.get("broken", ()):
                x0 = x0 * float("nan")
            return x0, label

        ours.batches.at = batch
        ours.fit(options["iterations"], folder=out)


if __name__ == "__main__":
    main()
