"""``cdrl-fast sample``: draw samples into a file or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from cdrl_fast import report
from cdrl_fast.cli.options import parse_device, parse_labels, parse_steps
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.precision import PrecisionName
from cdrl_fast.sampling.label_terms import cycled_labels
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.sampling.shards import sample_to_folder
from cdrl_fast.storage.folder import write_npz
from cdrl_fast.training.distributed import worker, worker_device

SUFFIXES = (".png", ".jpg", ".npz")
"""Suffixes of files that samples can be written to: pictures, and an archive of the values."""


@dataclass(frozen=True)
class Sample:
    """Draw samples into a picture, an .npz file or a folder, also under torchrun."""

    model: str = "digits"
    """A shipped model, the folder of a model or run, or a Hub id."""
    out: Path = Path("samples.png")
    """.png or .jpg: a picture; .npz: the values; no suffix: a folder, with samples.npy at the end.
    Repeat the command to resume an unfinished folder."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n", "--num"])] = 64
    """Number of samples. Under torchrun write -n: it has its own --n and --num."""
    label: tuple[str, ...] = ()
    """Class names or numbers, cycled over the samples."""
    guidance: float = 0.0
    """Weight of classifier-free guidance towards the label."""
    steps: tuple[str, ...] = ()
    """Langevin steps per level: one number, one per level 1 … T, or tuned."""
    seed: int = 0
    """Seed of the noise: equal seeds give equal samples."""
    batch_size: int | None = None
    """Samples per batch, for less memory; by default up to 1,024, or 512 into a folder."""
    denoise_scale: float = 1.0
    """Factor of the final denoising step: 1 is Tweedie's formula, 2 the authors' released code."""
    correctors: int = 0
    """Extra Langevin steps after each level."""
    metropolis: bool = False
    """Accept or reject each Langevin step (MALA); needs --precision fp32 or fp64."""
    precision: PrecisionName = "auto"
    """Precision of the networks; auto: bf16 if the processor has it in hardware, else fp32."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def run(self) -> None:
        """Draw the samples, write them and print where they are."""
        model = CDRL.from_pretrained(self.model).to(worker_device(parse_device(self.device)))
        options: dict[str, Any] = {
            "seed": self.seed,
            "steps": parse_steps(self.steps),
            "guidance": self.guidance,
            "denoise_scale": self.denoise_scale,
            "correctors": self.correctors,
            "metropolis": self.metropolis,
            "progress": True,
        }
        label = parse_labels(self.label, model)
        cycle = label if isinstance(label, list) or label is None else [label]
        if cycle is not None and len(cycle) > self.n:
            raise ValueError(
                f"label: expected at most {self.n} classes for {self.n} samples, got {len(cycle)}; "
                "raise --n"
            )
        sampler = Sampler(model, precision=self.precision)
        if self.out.suffix:
            _check_file(self.out)
            labels = cycled_labels(model, cycle, self.n)
            options |= {"label": labels, "batch_size": self.batch_size}
            write_samples(sampler.sample(self.n, **options).cpu(), self.out)
            print(f"{self.out}: {self.n} samples")
            return
        rank, workers = worker()
        options |= {"worker": rank, "workers": workers, "batch_size": self.batch_size or 512}
        merged = sample_to_folder(sampler, self.n, self.out, label=cycle, **options)
        if merged is not None:
            print(f"{merged}: {self.n} samples")


def _check_file(path: Path) -> None:
    """Raise ValueError, before any sample is drawn, if samples cannot be written to ``path``."""
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"out: expected {', '.join(SUFFIXES)}, or a folder's name without a suffix, got {path}"
        )
    if worker()[1] > 1:
        raise ValueError(f"out: several workers need a folder, without suffix, got {path}")


def write_samples(samples: torch.Tensor, path: Path) -> None:
    """Write a picture of the samples or, to an .npz file, their values."""
    if path.suffix == ".npz":
        write_npz(path, samples=samples)
    elif samples.dim() == 4:
        report.save_image_grid(samples, path, columns=10)
    else:
        report.scatter_figure(samples, f"{len(samples)} samples").savefig(path, dpi=100)
