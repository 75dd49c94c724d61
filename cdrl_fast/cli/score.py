"""``cdrl-fast score``: print the log-densities of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cdrl_fast.cli.options import ModelCommand, parse_labels
from cdrl_fast.storage.folder import json_to_bytes, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from cdrl_fast.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Score(ModelCommand):
    """Print the log-densities of images: the higher, the closer to the training data."""

    data: tyro.conf.Positional[str]
    """Data to score, as for train --data; images are resized to the model's size."""
    against: str | None = None
    """Other data; prints the AUROC, the chance that the first data score higher."""
    levels: tuple[int, ...] = (1,)
    """Noise levels 1 … T; the scores of several are standardised on --train and averaged."""
    train: str | None = None
    """Training data, used with several levels; by default the data to score."""
    label: str | None = None
    """Class name or number, for densities of that class; by default without a label."""
    out: Path | None = None
    """JSON file for all scores."""

    def run(self) -> None:
        """Print medians and the five lowest scores; write all to ``out``."""
        from cdrl_fast import Sampler, metrics
        from cdrl_fast.data import load_data

        model = self.load_model()
        sampler = Sampler(model)
        label = None if self.label is None else parse_labels([self.label], model)[0]
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
            content = {
                name: {"files": data[name].files, "scores": values.tolist()}
                for name, values in scores.items()
            }
            write_atomic(self.out, json_to_bytes(content))
        if self.against is not None:
            area = metrics.auroc(scores[self.data], scores[self.against])
            print(f"AUROC of {self.data} against {self.against}: {area:.4f}")


def _all(data: Dataset) -> Tensor:
    return data.batch(range(len(data)))[0]
