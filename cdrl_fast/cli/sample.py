"""``cdrl-fast sample``: draw samples into a file or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cdrl_fast.cli.options import SamplingCommand, parse_device, parse_labels
from cdrl_fast.sampling.request import SampleOptions
from cdrl_fast.storage.folder import write_npz

if TYPE_CHECKING:
    from torch import Tensor

    from cdrl_fast.model.cdrl import CDRL

SUFFIXES = (".png", ".jpg", ".npz")
"""Suffixes of files that samples can be written to: pictures, and an archive of the values."""


@dataclass(frozen=True, kw_only=True)
class Sample(SamplingCommand):
    """Draw samples into a picture, an .npz file or a folder, also under torchrun."""

    out: Path = Path("samples.png")
    """.png or .jpg: a picture; .npz: the values; no suffix: a folder, with samples.npy at the end.
    Repeat the command to resume an unfinished folder."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n", "--num"])] = 64
    """Number of samples. Under torchrun write -n: it has its own --n and --num."""
    denoise_scale: float = 1.0
    """Factor of the final denoising step: 1 is Tweedie's formula, 2 the authors' released code."""
    metropolis: bool = False
    """Accept or reject each Langevin step (MALA); needs --precision fp32 or fp64."""

    def sample_options(self, model: CDRL) -> SampleOptions:
        """Return the keyword arguments of `Sampler.sample`."""
        # A list even of one label: samples take the labels cyclically.
        label = parse_labels(self.label, model) or None
        return {**super().sample_options(model), "label": label}

    def run(self) -> None:
        """Draw the samples, write them and print where they are."""
        from cdrl_fast import CDRL, Sampler, sample_to_folder
        from cdrl_fast.sampling.label_terms import cycled_labels
        from cdrl_fast.training.distributed import worker, worker_device

        rank, workers = worker()
        model = CDRL.from_pretrained(self.model).to(worker_device(parse_device(self.device)))
        options = self.sample_options(model)
        if len(self.label) > self.n:
            raise ValueError(
                f"label: expected at most {self.n} classes for {self.n} samples, got "
                f"{len(self.label)}; raise --n"
            )
        sampler = Sampler(model, precision=self.precision)
        if self.out.suffix:
            self._check_file(workers)
            options["label"] = cycled_labels(model, options["label"], self.n)
            write_samples(sampler.sample(self.n, **options).cpu(), self.out)
            print(f"{self.out}: {self.n} samples")
        elif merged := sample_to_folder(
            sampler, self.n, self.out, worker=rank, workers=workers, **options
        ):
            print(f"{merged}: {self.n} samples")

    def _check_file(self, workers: int) -> None:
        """Raise ValueError, before any sample is drawn, if they cannot be written to ``out``."""
        if self.out.suffix not in SUFFIXES:
            raise ValueError(
                f"out: expected {', '.join(SUFFIXES)}, or a folder's name without a suffix, got "
                f"{self.out}"
            )
        if workers > 1:
            raise ValueError(f"out: several workers need a folder, without suffix, got {self.out}")


def write_samples(samples: Tensor, path: Path) -> None:
    """Write a picture of the samples or, to an .npz file, their values."""
    from cdrl_fast import report

    if path.suffix == ".npz":
        write_npz(path, samples=samples)
    elif samples.dim() == 4:
        report.save_image_grid(samples, path, columns=10)
    else:
        report.scatter_figure(samples, f"{len(samples)} samples").savefig(path, dpi=100)
