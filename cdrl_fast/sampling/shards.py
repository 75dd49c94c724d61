"""`sample_to_folder`: many samples, drawn in shards by any number of workers, resumable."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdrl_fast._lazy import progress_bar
from cdrl_fast.data.images import as_bytes
from cdrl_fast.errors import CheckpointError, check_integer
from cdrl_fast.sampling.label_terms import cycled_labels
from cdrl_fast.sampling.request import SampleOptions, SampleRequest
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

SHARD = 512
"""Samples per shard by default."""
REQUEST, SAMPLES, LABELS = "request.json", "samples.npy", "labels.npy"
Array = NDArray[Any]


def sample_to_folder(
    sampler: Sampler,
    n: int,
    folder: str | Path,
    *,
    worker: int = 0,
    workers: int = 1,
    **options: Unpack[SampleOptions],
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
        worker, workers: index of this worker and number of workers.
        options: keyword arguments of `SampleRequest`. ``label`` is a list of class numbers or
            names, which the samples take cyclically, and ``batch_size`` the number of samples per
            shard, 512 by default.

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
    if not sampler.source.takes_labels:
        raise TypeError(f"{where}: expected the sampler of one model, got one of a combination")
    check_integer(where, "n", n, 1, 2**31)
    check_integer(where, "workers", workers, 1, 2**31)
    check_integer(where, "worker", worker, 0, workers)
    if options.get("batch_size") is None:
        options["batch_size"] = SHARD
    request = SampleRequest.of(where, n, options)
    labels = cycled_labels(sampler.model, request.label, n)
    try:
        return _Shards(sampler, request, labels, Path(folder)).run(worker, workers)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write samples: {error}") from error


class _Shards:
    """The shards of a request in a folder."""

    def __init__(
        self, sampler: Sampler, request: SampleRequest, labels: Tensor | None, folder: Path
    ) -> None:
        self.sampler, self.request, self.folder = sampler, request, folder
        self.labels, self.batches = labels, request.batches()

    def run(self, worker: int, workers: int) -> Path | None:
        """Draw this worker's shards; merge all shards if none is missing then."""
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self._register()
        if self._is_merged():
            return self.folder / SAMPLES
        indices = range(worker, len(self.batches), workers)
        options = {"total": len(indices), "desc": "sampling", "unit": "shard"}
        with progress_bar(self.request.progress, **options) as bar:
            for i in indices:
                self._shard(i)
                bar.update()
        if all(self._shard_folder(i).is_dir() for i in range(len(self.batches))):
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
        sampler, request, digest = self.sampler, self.request, hashlib.sha256()
        digest.update(tensors_to_bytes(sampler.model.state_dict()))
        labels = None if self.labels is None else hashlib.sha256(self.labels.numpy().tobytes())
        names = ("n", "seed", "guidance", "denoise_scale", "correctors", "metropolis")
        return {
            **{name: getattr(request, name) for name in names},
            # Older folders have no such entry.
            **({"first_sample": request.first_sample} if request.first_sample else {}),
            "model": digest.hexdigest(),
            "steps": str(sampler.model.plan(request.steps)),
            "labels": None if labels is None else labels.hexdigest(),
            "batch_size": request.largest_batch,
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
        rows, request = self.batches[i], self.request
        label = None if self.labels is None else self.labels[rows.start : rows.stop]
        first_sample = request.first_sample + rows.start
        shard = replace(
            request, n=len(rows), label=label, first_sample=first_sample, progress=False
        )
        samples = self.sampler.run(shard)
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
            shape = (self.request.n, *first.shape[1:])
            samples = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=shape)
            for i, rows in enumerate(self.batches):
                samples[rows.start : rows.stop] = self._shard(i)
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
