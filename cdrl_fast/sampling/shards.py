"""Many samples into a folder: by any number of workers, stopped and started at will."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast._lazy import progress_bar
from cdrl_fast.data.images import as_bytes
from cdrl_fast.errors import CheckpointError
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
from cdrl_fast.ops.philox import check_integer
from cdrl_fast.sampling.label_terms import cycled_labels
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.storage.folder import (
    SUMS,
    json_to_bytes,
    read_folder,
    sums_of,
    tensors_to_bytes,
    write_atomic,
    write_folder,
)

REQUEST, SAMPLES, LABELS = "request.json", "samples.npy", "labels.npy"
Array = NDArray[Any]


def sample_to_folder(
    sampler: Sampler,
    n: int,
    folder: str | Path,
    *,
    seed: int = 0,
    steps: Steps = None,
    label: Sequence[int | str] | None = None,
    guidance: float = 0.0,
    batch_size: int = 512,
    denoise_scale: float = 1.0,
    correctors: int = 0,
    metropolis: bool = False,
    worker: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path | None:
    """Draws ``n`` samples into a folder, in shards that survive whatever stops the work.

    The samples are cut into batches of ``batch_size``, whoever draws them. Worker i draws every
    ``workers``-th batch from the i-th on, each into ``shards/``: written apart, synced, renamed,
    with its checksum. Whole shards are not drawn again, so a stopped run goes on where it was, with
    another number of workers too. The worker that finds all shards there merges them. The merged
    file's bytes do not depend on the workers (of one kind of device).

    Args:
        sampler: of one model.
        n: how many; at least 1.
        folder: made if it is not there; all workers must see it.
        seed, steps, guidance, denoise_scale, correctors, metropolis: as in `Sampler.sample`.
        label: class numbers or names, taken in turn; None: no label.
        batch_size: samples a shard.
        worker, workers: which one this is, of how many.
        progress: show a progress bar.

    Returns:
        ``samples.npy``: images uint8 (n, H, W, C), round(127.5 (x + 1)), as tools for FID take
        them; points float32 (n, dim). Beside it ``labels.npy``, int64 (n,), if there are labels;
        ``request.json``; and ``SHA256SUMS`` of all three. None where other workers have shards left
        to draw. ``shards/`` stays and may be deleted after that.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        CheckpointError: the folder holds samples of another request, or cannot be written to.
        ChainDiverged: a state left the finite numbers.

    Examples:
        >>> from cdrl_fast import Sampler, sample_to_folder
        >>> sampler = Sampler.from_pretrained("digits")
        >>> sample_to_folder(sampler, 50_000, "samples", batch_size=500)  # doctest: +SKIP
        PosixPath('samples/samples.npy')
    """
    where = "sample_to_folder"
    if not isinstance(sampler.source, CDRL):
        raise TypeError(f"{where}: expected the sampler of one model, got one of a combination")
    check_integer(where, "n", n, 1, 2**31)
    check_integer(where, "batch_size", batch_size, 1, 2**31)
    check_integer(where, "workers", workers, 1, 2**31)
    check_integer(where, "worker", worker, 0, workers)
    request = _Request(
        sampler, n, Path(folder), batch_size, cycled_labels(sampler.model, label, n),
        {"seed": seed, "steps": steps, "guidance": guidance, "denoise_scale": denoise_scale,
         "correctors": correctors, "metropolis": metropolis},
    )  # fmt: skip
    try:
        return request.run(worker, workers, progress)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot hold samples: {error}") from error


class _Request:
    """What is asked for, and the folder that it is to be in."""

    def __init__(
        self,
        sampler: Sampler,
        n: int,
        folder: Path,
        size: int,
        labels: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        self.sampler, self.n, self.folder, self.size = sampler, n, folder, size
        self.labels, self.options = labels, options
        self.shards = -(-n // size)

    def run(self, worker: int, workers: int, progress: bool) -> Path | None:
        """This worker's shards, and the merged file if all others' are there."""
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self._register()
        if self._merged():
            return self.folder / SAMPLES
        mine = range(worker, self.shards, workers)
        with progress_bar(progress, total=len(mine), desc="sampling", unit="shard") as bar:
            for i in mine:
                self._shard(i)
                bar.update()
        if all(self._place(i).is_dir() for i in range(self.shards)):
            return self._merge()
        return None

    def _register(self) -> None:
        """Writes the request down, or finds it there."""
        path, mine = self.folder / REQUEST, self._described()
        if not path.exists():
            write_atomic(path, json_to_bytes(mine))
        there = json.loads(path.read_bytes())
        other = sorted(k for k in mine if there.get(k) != mine[k])
        if other:
            name = other[0]
            raise CheckpointError(
                f"{self.folder}: holds samples of another request; its {name} is "
                f"{there.get(name)}, asked for is {mine[name]}. Take another folder"
            )

    def _described(self) -> dict[str, Any]:
        sampler, digest = self.sampler, hashlib.sha256()
        digest.update(tensors_to_bytes(sampler.model.state_dict()))
        labels = None if self.labels is None else hashlib.sha256(self.labels.numpy().tobytes())
        plan = sampler.model.plan(self.options["steps"])
        return {
            **self.options,
            "model": digest.hexdigest(),
            "n": self.n,
            "steps": str(plan),
            "labels": None if labels is None else labels.hexdigest(),
            "batch_size": self.size,
            "precision": sampler.precision.name,
        }

    def _place(self, i: int) -> Path:
        return self.folder / "shards" / f"{i:08d}"

    def _shard(self, i: int) -> Array:
        """A shard's samples: those that are there, else fresh ones, which are kept."""
        place = self._place(i)
        if place.is_dir():
            try:
                return _array(read_folder(place)[SAMPLES])
            except CheckpointError:  # broken by whatever stopped the work
                pass
        start, stop = i * self.size, min((i + 1) * self.size, self.n)
        samples = self.sampler.sample(
            stop - start,
            label=None if self.labels is None else self.labels[start:stop],
            first_sample=start,
            batch_size=self.size,
            **self.options,
        )
        array = _stored(samples.cpu())
        try:
            write_folder(place, {SAMPLES: _bytes(array)})
        except OSError:
            if not place.is_dir():  # else another worker was faster
                raise
        return array

    def _merged(self) -> bool:
        try:
            return (self.folder / SUMS).read_bytes() == self._sums()
        except FileNotFoundError:
            return False

    def _sums(self) -> bytes:
        names = [REQUEST, SAMPLES] if self.labels is None else [REQUEST, SAMPLES, LABELS]
        return sums_of(self.folder, names)

    def _merge(self) -> Path:
        """All shards in one file; whoever does it writes the same bytes."""
        first = self._shard(0)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".merge.") as temporary:
            path = Path(temporary) / SAMPLES
            shape = (self.n, *first.shape[1:])
            whole = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)
            for i in range(self.shards):
                whole[i * self.size : (i + 1) * self.size] = self._shard(i)
            whole.flush()
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.chmod(path, 0o644)
            os.replace(path, self.folder / SAMPLES)
        if self.labels is not None:
            write_atomic(self.folder / LABELS, _bytes(self.labels.numpy()))
        write_atomic(self.folder / SUMS, self._sums())
        return self.folder / SAMPLES


def _stored(samples: Tensor) -> Array:
    if samples.dim() != 4:
        return samples.float().numpy()
    return as_bytes(samples).permute(0, 2, 3, 1).contiguous().numpy()


def _bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _array(data: bytes) -> Array:
    found: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return found
