"""Races of contenders that are timed alternately, so that disturbances affect all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cdrl_fast.ops.sign_bits import unpack

WARMUP = 3
LONG = 0.2
"""Calls that take more seconds than this have one warm-up round and fewer timed rounds."""


CHECK_ONLY = False
"""Whether contenders are checked but not timed (--benchmark-disable), with small batches."""


def batch_of(timed: int) -> int:
    """Return the batch size: ``timed``, or at most 2 if contenders are only checked."""
    return min(timed, 2) if CHECK_ONLY else timed


def signs_differ(signs: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of different signs; sums in another order flip those of tiny values."""
    return float((unpack(signs.cpu()) != unpack(expected.cpu())).float().mean())


def with_gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], grad: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Return a call of ``function`` that returns its output and the gradients of all inputs."""
    leaves = [t.requires_grad_() for t in inputs]

    def run() -> tuple[torch.Tensor, ...]:
        y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, grad)

    return run


@dataclass
class Race:
    """Several implementations of the same work.

    Attributes:
        group: the name of the work, under which results are compared.
        device: the device that all contenders run on.
        work: the number of units per call, such as {"steps": 100}.
        contenders: functions by name, each of which does the work once.
        notes: additional entries of each contender's result row.
    """

    group: str
    device: torch.device
    work: dict[str, float]
    contenders: dict[str, Callable[[], object]] = field(default_factory=dict)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)

    def time(self, benchmark: Any, name: str, rounds: int) -> None:
        """Time one contender; before each of its rounds, every other contender is timed once.

        ``extra_info["others"]`` has the median time of each other contender, and
        ``extra_info["ratios"]`` the median of its time divided by this contender's next time.
        """
        before: list[dict[str, float]] = []

        def time_others() -> None:
            before.append({n: self._seconds(n) for n in self.contenders if n != name})

        def run() -> None:
            self.contenders[name]()
            self._wait()

        long = not benchmark.disabled and self._seconds(name) > LONG
        rounds, warmup = (max(5, rounds // 3), 1) if long else (rounds, WARMUP)
        benchmark.group = self.group
        setup = None if benchmark.disabled else time_others
        benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=warmup)
        notes = self.notes.get(name, {})
        benchmark.extra_info.update(contender=name, device=str(self.device), **self.work, **notes)
        if benchmark.disabled:
            return
        seconds = benchmark.stats.stats.data
        pairs = list(zip(before[-len(seconds) :], seconds, strict=True))
        benchmark.extra_info["others"] = {
            n: statistics.median(other[n] for other, _ in pairs) for n in before[-1]
        }
        benchmark.extra_info["ratios"] = {
            n: statistics.median(other[n] / own for other, own in pairs) for n in before[-1]
        }

    def _seconds(self, name: str) -> float:
        start = time.perf_counter()
        self.contenders[name]()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
