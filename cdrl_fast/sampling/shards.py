"""`sample_to_folder`: many samples, drawn in shards by any number of workers, resumable."""

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
from cdrl_fast.errors import CheckpointError, check_integer
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import Steps
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
    """Draw ``n`` samples into a folder, in shards, so that an interrupted run can be resumed.

    A shard contains ``batch_size`` samples. Worker i draws the shards i, i + workers, … and writes
    each one to ``shards/`` atomically and with a checksum. A complete shard is not drawn again, so
    the same call resumes an interrupted run, also with another number of workers. The worker that
    completes the last shard merges all of them. On one kind of device the merged file does not
    depend on the number of workers, to the byte.

    Args:
        sampler: a sampler of one model, not of a combination.
        n: number of samples, at least 1.
        folder: folder to write to; it is created if it does not exist. All workers need access.
        seed, steps, guidance, denoise_scale, correctors, metropolis: as in `Sampler.sample`.
        label: class numbers or names, which the samples take cyclically; None: no labels.
        batch_size: number of samples per shard.
        worker, workers: index of this worker and number of workers.
        progress: whether to show a progress bar.

    Returns:
        The path of ``samples.npy``, or None while shards of other workers are missing. Images are
        uint8 (n, H, W, C), round(127.5 (x + 1)), the format of tools that compute the FID; points
        are float32 (n, dim). The folder also contains ``labels.npy``, int64 (n,), if there are
        labels; ``request.json``, which describes the request; and ``SHA256SUMS`` of these files.
        ``shards/`` can be deleted afterwards.

    Raises:
        ValueError, TypeError: an argument has a wrong value or type.
        CheckpointError: the folder contains samples of another request, or cannot be written to.
        ChainDiverged: a state became non-finite (NaN or Inf).

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
        raise CheckpointError(f"{folder}: cannot write samples: {error}") from error


class _Request:
    """A request for n samples in a folder."""

    def __init__(
        self,
        sampler: Sampler,
        n: int,
        folder: Path,
        batch_size: int,
        labels: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        self.sampler, self.n, self.folder, self.batch_size = sampler, n, folder, batch_size
        self.labels, self.options = labels, options
        self.shards = -(-n // batch_size)

    def run(self, worker: int, workers: int, progress: bool) -> Path | None:
        """Draw this worker's shards; merge all shards if none is missing then."""
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self._register()
        if self._is_merged():
            return self.folder / SAMPLES
        indices = range(worker, self.shards, workers)
        with progress_bar(progress, total=len(indices), desc="sampling", unit="shard") as bar:
            for i in indices:
                self._shard(i)
                bar.update()
        if all(self._shard_folder(i).is_dir() for i in range(self.shards)):
            return self._merge()
        return None

    def _register(self) -> None:
        """Write the request's description, or compare it with the one in the folder."""
        path, requested = self.folder / REQUEST, self._description()
        if not path.exists():
            write_atomic(path, json_to_bytes(requested))
        stored = json.loads(path.read_bytes())
        differing = sorted(k for k in requested if stored.get(k) != requested[k])
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"{self.folder}: contains samples of another request; its {name} is "
                f"{stored.get(name)}, requested is {requested[name]}. Use another folder"
            )

    def _description(self) -> dict[str, Any]:
        """Return the contents of ``request.json``: all that determines the samples."""
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
            "batch_size": self.batch_size,
            "precision": sampler.precision.name,
        }

    def _shard_folder(self, i: int) -> Path:
        return self.folder / "shards" / f"{i:08d}"

    def _shard(self, i: int) -> Array:
        """Return the samples of a shard; draw and write them if it is missing or corrupt."""
        folder = self._shard_folder(i)
        if folder.is_dir():
            try:
                return _bytes_to_array(read_folder(folder)[SAMPLES])
            except CheckpointError:  # corrupt: the shard is drawn again
                pass
        start, stop = i * self.batch_size, min((i + 1) * self.batch_size, self.n)
        samples = self.sampler.sample(
            stop - start,
            label=None if self.labels is None else self.labels[start:stop],
            first_sample=start,
            batch_size=self.batch_size,
            **self.options,
        )
        array = _samples_to_array(samples.cpu())
        try:
            write_folder(folder, {SAMPLES: _array_to_bytes(array)})
        except OSError:
            if not folder.is_dir():  # otherwise another worker has written the same shard
                raise
        return array

    def _is_merged(self) -> bool:
        try:
            return (self.folder / SUMS).read_bytes() == self._checksums()
        except FileNotFoundError:
            return False

    def _checksums(self) -> bytes:
        names = [REQUEST, SAMPLES] if self.labels is None else [REQUEST, SAMPLES, LABELS]
        return sums_of(self.folder, names)

    def _merge(self) -> Path:
        """Write all shards to one file; every worker that does so writes the same bytes."""
        first = self._shard(0)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".merge.") as temporary:
            path = Path(temporary) / SAMPLES
            shape = (self.n, *first.shape[1:])
            samples = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)
            for i in range(self.shards):
                samples[i * self.batch_size : (i + 1) * self.batch_size] = self._shard(i)
            samples.flush()
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.chmod(path, 0o644)
            os.replace(path, self.folder / SAMPLES)
        if self.labels is not None:
            write_atomic(self.folder / LABELS, _array_to_bytes(self.labels.numpy()))
        write_atomic(self.folder / SUMS, self._checksums())
        return self.folder / SAMPLES


def _samples_to_array(samples: Tensor) -> Array:
    if samples.dim() != 4:
        return samples.float().numpy()
    return as_bytes(samples).permute(0, 2, 3, 1).contiguous().numpy()


def _array_to_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _bytes_to_array(data: bytes) -> Array:
    array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return array
