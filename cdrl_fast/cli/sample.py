"""``cdrl-fast sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from cdrl_fast import report
from cdrl_fast.cli.options import device_of, labels_of, one_plan
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.precision import PrecisionName
from cdrl_fast.sampling.label_terms import cycled_labels
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.sampling.shards import sample_to_folder
from cdrl_fast.storage.folder import write_npz
from cdrl_fast.training.distributed import worker, worker_device

PICTURES = (".png", ".jpg", ".npz")
"""What samples can be written to, values in the last one."""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a model; into a folder, under torchrun too, and to be taken up again."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    out: Path = Path("samples.png")
    """A picture of all samples; with .npz their values; without suffix a folder of shards, which
    are merged into samples.npy."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n", "--num"])] = 64
    """How many. Under torchrun -n, since it takes --n and --num for options of its own."""
    label: tuple[str, ...] = ()
    """Class names or numbers, taken in turn."""
    guidance: float = 0.0
    steps: tuple[str, ...] = ()
    """Langevin steps a level: one number, one for each level 1 … T, or tuned."""
    seed: int = 0
    batch_size: int | None = None
    denoise_scale: float = 1.0
    correctors: int = 0
    """Extra Langevin steps a level."""
    metropolis: bool = False
    """Accept or refuse each Langevin step (MALA); with --precision fp32 or fp64."""
    precision: PrecisionName = "auto"
    """Of the networks, as in Sampler; auto: bf16 where the processor multiplies it, else fp32."""
    device: str = "auto"

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(worker_device(device_of(self.device)))
        options: dict[str, Any] = {
            "seed": self.seed,
            "steps": one_plan(self.steps),
            "guidance": self.guidance,
            "denoise_scale": self.denoise_scale,
            "correctors": self.correctors,
            "metropolis": self.metropolis,
            "progress": True,
        }
        label = labels_of(self.label, model)
        in_turn = label if isinstance(label, list) or label is None else [label]
        if in_turn is not None and len(in_turn) > self.n:
            raise ValueError(f"label: {len(in_turn)} classes cannot take turns in {self.n} samples")
        sampler = Sampler(model, precision=self.precision)
        if self.out.suffix:
            _check_picture(self.out)
            each = cycled_labels(model, in_turn, self.n)
            options |= {"label": each, "batch_size": self.batch_size}
            write_samples(sampler.sample(self.n, **options).cpu(), self.out)
            print(f"{self.out}: {self.n} samples")
            return
        rank, workers = worker()
        options |= {"worker": rank, "workers": workers, "batch_size": self.batch_size or 512}
        done = sample_to_folder(sampler, self.n, self.out, label=in_turn, **options)
        if done is not None:
            print(f"{done}: {self.n} samples")


def _check_picture(path: Path) -> None:
    """Raises ValueError before samples are drawn that could not be written there."""
    if path.suffix not in PICTURES:
        raise ValueError(
            f"out: expected {', '.join(PICTURES)}, or a folder's name without a suffix, got {path}"
        )
    if worker()[1] > 1:
        raise ValueError(f"out: several workers share a folder of shards, not {path}")


def write_samples(samples: torch.Tensor, path: Path) -> None:
    """A picture of samples, or with .npz their values."""
    if path.suffix == ".npz":
        write_npz(path, samples=samples)
    elif samples.dim() == 4:
        report.save_image_grid(samples, path, columns=10)
    else:
        report.scatter_figure(samples, f"{len(samples)} samples").savefig(path, dpi=100)
