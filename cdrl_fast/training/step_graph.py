"""A training iteration as a CUDA graph: captured once, then replayed for other batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast.engine.cuda_graph import capture
from cdrl_fast.training.step import Iteration


def captured(iteration: Iteration) -> Iteration | IterationGraph:
    """The iteration as a CUDA graph, or itself where it can't be one."""
    return IterationGraph(iteration) if iteration.capturable else iteration


class IterationGraph:
    """An iteration's gradients by one launch: both losses, the chain between them and the backward
    passes are a list of kernels over memory of their own.

    The update is not in it: it waits for the host to see that losses and gradients are finite.

    Args:
        iteration: a capturable one; its model's parameters and buffers are to stay in their memory.
            Where the capture fails, a warning says why, and it runs without.
    """

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration
        self._replay: Callable[[], None] | None = None
        self._failed = False

    def __call__(self, x0: Tensor, label: Tensor | None, first: int) -> dict[str, Tensor]:
        """As `Iteration`, for batches of one size; the next call writes into the results."""
        if self._replay is None and not self._failed:
            self._capture(x0, label, first)
        if self._replay is None:
            return self._iteration(x0, label, first)
        self._put(x0, label, first)
        self._replay()
        return dict(self._found)

    def _capture(self, x0: Tensor, label: Tensor | None, first: int) -> None:
        self._x0 = torch.empty_like(x0)
        self._label = None if label is None else torch.empty_like(label)
        self._first = torch.zeros((), dtype=torch.int64, device=x0.device)
        self._put(x0, label, first)
        # The run before the recording moves the power iterations on.
        buffers = list(self._iteration.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            self._replay = capture(self._work, x0.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                f"training runs without CUDA graphs, since one could not be captured: {error}",
                stacklevel=2,
            )
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)

    def _put(self, x0: Tensor, label: Tensor | None, first: int) -> None:
        self._x0.copy_(x0)
        if self._label is not None and label is not None:
            self._label.copy_(label)
        self._first.fill_(first)

    def _work(self) -> None:
        self._found = self._iteration(self._x0, self._label, self._first)
