"""Networks of your own, trained and sampled: anything with ``forward(y, logsnr, label)``.

    python examples/own_networks.py --out DIR

An energy and an initializer in plain PyTorch learn the 2-D checkerboard. Writes the training run
and a picture of samples, and prints the share of them inside the squares. The run's checkpoints
hold the weights; ``CDRL.from_pretrained(DIR, networks=(Energy(), Perceptron(2)))`` reads them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from cdrl_fast import CDRL, NoiseSchedule, Sampler, TrainConfig, Trainer
from cdrl_fast.data import load_data
from cdrl_fast.metrics import checkerboard_shares
from cdrl_fast.report import scatter_figure


class Perceptron(nn.Module):
    """(y, logsnr) → ``out`` numbers a sample."""

    def __init__(self, out: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, out),
        )

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """``logsnr`` has one entry a sample or one for all; ``label`` is None here."""
        level = (logsnr / 10).expand(len(y)).unsqueeze(1)
        return self.layers(torch.cat([y, level.to(y.dtype)], dim=1))


class Energy(Perceptron):
    """Log-density up to a constant and a factor: (n, 2) → (n,)."""

    def __init__(self) -> None:
        super().__init__(out=1)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """f(y); without spectral norms the square keeps the chain from running away."""
        return super().forward(y, logsnr)[:, 0] - 0.05 * y.square().sum(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load_data("checkerboard")
    schedule = NoiseSchedule(levels=6, steps=15, kappa=1e-3, step_scale="constant")
    model = CDRL(Energy(), Perceptron(out=2), schedule, sample_shape=data.sample_shape)
    config = TrainConfig(batch_size=500, energy_lr=1e-3, initializer_lr=1e-3, warmup=100)
    trainer = Trainer(model, data, config)
    trainer.fit(options.iterations, folder=options.out, progress=True)
    samples = Sampler(trainer.ema).sample(options.samples)
    inside, _ = checkerboard_shares(samples.numpy())
    print(f"{100 * inside:.1f} % of the samples are inside the squares (50 % by chance)")
    scatter_figure(samples, "networks of one's own").savefig(options.out / "samples.png", dpi=100)


if __name__ == "__main__":
    main()
