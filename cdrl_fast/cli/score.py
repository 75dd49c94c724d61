"""``cdrl-fast score``: how likely images are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from cdrl_fast import metrics
from cdrl_fast.cli.options import device_of, labels_of
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.storage.folder import json_to_bytes, write_atomic


@dataclass(frozen=True)
class Score:
    """Log-densities of images: the higher, the more like what the model was trained on."""

    data: tyro.conf.Positional[str]
    """What to score: digits, idx:FOLDER, folder:PATH, …; images are resized to the model's."""
    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    against: str | None = None
    """Also score other data, and print the AUROC: the chance that the first's score is higher."""
    levels: tuple[int, ...] = (1,)
    """Noise levels, 1 … T; several are averaged, standardised on --train."""
    train: str | None = None
    """Training data for that; by default the data itself."""
    label: str | None = None
    """A class name or number: how likely images are in this class; by default without a label."""
    out: Path | None = None
    """Also write all scores there, as JSON."""
    device: str = "auto"
    """A torch device; auto: a GPU where there is one."""

    def run(self) -> None:
        model = CDRL.from_pretrained(self.model).to(device_of(self.device))
        sampler = Sampler(model)
        label = None if self.label is None else labels_of((self.label,), model)
        names = dict.fromkeys([self.data, *([] if self.against is None else [self.against])])
        size = model.sample_shape[-1] if model.is_image else None
        data = {name: load_data(name, image_size=size) for name in names}
        statistics = None
        if len(self.levels) > 1:
            train = load_data(self.train or self.data, image_size=size)
            statistics = sampler.level_statistics(_all(train), levels=self.levels, label=label)
        scores = {
            name: sampler.log_density(
                _all(part), levels=self.levels, statistics=statistics, label=label
            ).cpu()
            for name, part in data.items()
        }
        for name, values in scores.items():
            files = data[name].files
            print(f"{name}: {len(values)} samples, median {float(values.median()):.6g}")
            for index in values.argsort()[:5].tolist():
                print(f"  {files[index] if files else index}: {float(values[index]):.6g}")
        if self.out is not None:
            found = {
                name: {"files": data[name].files, "scores": values.tolist()}
                for name, values in scores.items()
            }
            write_atomic(self.out, json_to_bytes(found))
        if self.against is not None:
            area = metrics.auroc(scores[self.data], scores[self.against])
            print(f"AUROC of {self.data} against {self.against}: {area:.4f}")


def _all(data: Dataset) -> torch.Tensor:
    return data.batch(range(len(data)))[0]
