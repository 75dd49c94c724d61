"""Contenders that are timed in turn, so that what disturbs one disturbs all."""

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
"""Seconds from which a call warms up by itself and fewer rounds do."""


CHECKED_ALONE = False
"""Whether contenders are only checked, by --benchmark-disable: then small batches will do."""


def batch_of(timed: int) -> int:
    """The batch of a benchmark whose timed one is this."""
    return min(timed, 2) if CHECKED_ALONE else timed


def signs_differ(words: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of the signs that differ: sums in another order turn those of the smallest."""
    return float((unpack(words.cpu()) != unpack(expected.cpu())).float().mean())


def with_gradients(
    function: Callable[..., torch.Tensor], given: list[torch.Tensor], grad: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call gives the function's result and, by autograd, the gradients of all that is given."""
    leaves = [t.requires_grad_() for t in given]

    def run() -> tuple[torch.Tensor, ...]:
        y = function(*leaves)
        return y, *torch.autograd.grad(y, leaves, grad)

    return run


@dataclass
class Race:
    """Some ways to do the same work.

    Attributes:
        group: name of the work, under which results are compared.
        contenders: each does the work once when called.
        work: how many units one call does, such as {"steps": 100}.
        notes: by contender, what else its results should hold.
    """

    group: str
    device: torch.device
    work: dict[str, float]
    contenders: dict[str, Callable[[], object]] = field(default_factory=dict)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)

    def time(self, benchmark: Any, name: str, rounds: int) -> None:
        """Times one contender; before each of its rounds every other runs, timed as well.

        ``extra_info["others"]`` is, by other contender, the median of its times between this one's
        rounds, and ``extra_info["ratios"]`` the median of its time divided by this one's next.
        """
        before: list[dict[str, float]] = []

        def others() -> None:
            before.append({n: self._seconds(n) for n in self.contenders if n != name})

        def run() -> None:
            self.contenders[name]()
            self._wait()

        long = not benchmark.disabled and self._seconds(name) > LONG
        rounds, warmup = (max(5, rounds // 3), 1) if long else (rounds, WARMUP)
        benchmark.group = self.group
        setup = None if benchmark.disabled else others
        benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=warmup)
        notes = self.notes.get(name, {})
        benchmark.extra_info.update(contender=name, device=str(self.device), **self.work, **notes)
        if benchmark.disabled:
            return
        mine = benchmark.stats.stats.data
        paired = list(zip(before[-len(mine) :], mine, strict=True))
        others = paired[0][0]
        benchmark.extra_info["others"] = {
            name: statistics.median(theirs[name] for theirs, _ in paired) for name in others
        }
        benchmark.extra_info["ratios"] = {
            name: statistics.median(theirs[name] / own for theirs, own in paired) for name in others
        }

    def _seconds(self, name: str) -> float:
        start = time.perf_counter()
        self.contenders[name]()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
