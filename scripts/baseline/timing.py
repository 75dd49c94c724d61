"""Timing of device work, and the numeric settings it runs under."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# Below this an eager call is near the cost of launching it from Python, so it is timed in a graph.
GRAPH_BELOW = 5e-4
GRAPH_SECONDS = 2e-3
GRAPH_CALLS = 2048

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Setting:
    """What PyTorch is told about float32 products and about searching for algorithms."""

    matmul_tf32: bool
    cudnn_tf32: bool
    cudnn_benchmark: bool

    @property
    def rate(self) -> str:
        """The matrix rate that convolutions under this setting can reach."""
        return "tf32" if self.cudnn_tf32 else "fp32"


SETTINGS = {
    "defaults": Setting(matmul_tf32=False, cudnn_tf32=True, cudnn_benchmark=False),
    "tf32": Setting(matmul_tf32=True, cudnn_tf32=True, cudnn_benchmark=True),
    "fp32": Setting(matmul_tf32=False, cudnn_tf32=False, cudnn_benchmark=True),
}


@contextmanager
def numerics(name: str) -> Iterator[Setting]:
    """One of `SETTINGS` for the length of a block."""
    # The older pair of flags throughout: the newer fp32_precision must not be mixed with it, and
    # the compiler of torch 2.10 to 2.13 still reads the older ones.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    setting = SETTINGS[name]
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = setting.matmul_tf32, setting.cudnn_tf32
        cudnn.benchmark = setting.cudnn_benchmark
        yield setting
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and spread over samples, each the mean of ``calls`` calls."""

    seconds: float
    quartiles: tuple[float, float]
    best: float
    samples: int
    calls: int
    timer: str

    @classmethod
    def of(cls, seconds: list[float], calls: int, timer: str) -> Timing:
        low, median, high = seconds[0], seconds[0], seconds[0]
        if len(seconds) > 1:
            low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, (low, high), min(seconds), len(seconds), calls, timer)

    def figure(self, **more: Any) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "quartiles": list(self.quartiles),
            "best": self.best,
            "samples": self.samples,
            "calls_per_sample": self.calls,
            "timer": self.timer,
            **more,
        }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls by the host's clock, device idle before and after."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def measure(
    call: Callable[[int], object],
    device: torch.device,
    *,
    seconds: float = 0.1,
    at_least: int = 5,
    at_most: int = 50,
    rounds: int = 1,
    graph: bool = True,
) -> Timing:
    """Times ``call(i)``, i = 0, 1, …, after warming it up.

    Args:
        call: does one unit of work on buffer set ``i % rounds``.
        seconds: about how long to sample.
        at_least, at_most: bounds on the number of samples.
        rounds: number of buffer sets; a graph holds whole rounds, so that each sample touches all.
        graph: whether short calls may be captured and replayed, which leaves out launch gaps.
    """
    if device.type != "cuda":
        call(0)
        guess = wall(lambda: call(1), device, 1)[0]
        count = _samples(seconds, guess, at_least, at_most)
        index = iter(range(count))
        return Timing.of(wall(lambda: call(next(index)), device, count), 1, "host clock")
    _calls(call, 3)
    guess = _between_events(lambda: _calls(call, 5), 1)[0] / 5
    timer = "cuda events"
    if graph and guess < GRAPH_BELOW:
        stream = torch.cuda.current_stream()
        try:
            return _graphed(call, guess, seconds, at_least, at_most, rounds)
        except Exception as error:
            # A capture that fails as it ends leaves its own stream current.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize(device)
            timer = f"cuda events; no graph: {type(error).__name__}: {str(error)[:200]}"
    count = _samples(seconds, guess, at_least, at_most)
    index = iter(range(count))
    return Timing.of(_between_events(lambda: call(next(index)), count), 1, timer)


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: the allocator caches memory for each stream apart."""
    return torch.cuda.Stream()


def _calls(call: Callable[[int], object], count: int) -> None:
    for i in range(count):
        call(i)


def _samples(seconds: float, guess: float, at_least: int, at_most: int) -> int:
    return max(at_least, min(at_most, math.ceil(seconds / max(guess, 1e-7))))


def _graphed(
    call: Callable[[int], object],
    guess: float,
    seconds: float,
    at_least: int,
    at_most: int,
    rounds: int,
) -> Timing:
    """Replays of a graph of enough calls to last about `GRAPH_SECONDS`, in whole rounds."""
    calls = min(GRAPH_CALLS, math.ceil(GRAPH_SECONDS / max(guess, 1e-7)))
    calls = rounds * max(1, math.ceil(calls / rounds))
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    # Handles, workspaces and algorithm choices of the capturing stream exist before the capture.
    with torch.cuda.stream(side):
        _calls(call, 3)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=side):
        _calls(call, calls)
    guess = _between_events(captured.replay, 2)[1]
    count = _samples(seconds, guess, at_least, at_most)
    times = [t / calls for t in _between_events(captured.replay, count)]
    return Timing.of(times, calls, "cuda events around a graph")


def _between_events(call: Callable[[], object], count: int) -> list[float]:
    """Seconds on the device's clock of each of ``count`` calls queued back to back."""
    torch.cuda.synchronize()
    events = []
    for _ in range(count):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in events]
