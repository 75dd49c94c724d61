"""A training iteration as a CUDA graph: captured once, replayed for each batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from cdrl_fast.engine.cuda_graph import capture
from cdrl_fast.training.step import Iteration


def capture_if_possible(iteration: Iteration) -> Iteration | IterationGraph:
    """Return the iteration as a CUDA graph, or as it is where it cannot be captured."""
    return IterationGraph(iteration) if iteration.capturable else iteration


class IterationGraph:
    """A CUDA graph of an iteration up to its update: both losses, the chain, the backward passes.

    The update is not captured, because it waits for the host to check the gradients.

    Args:
        iteration: a capturable iteration, whose parameters and buffers stay at their addresses.
            Where the capture fails, a warning says why, and it runs without a graph.
    """

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration
        self._replay: Callable[[], None] | None = None
        self._failed = False

    def __call__(self, x0: Tensor, label: Tensor | None, first_sample: int) -> dict[str, Tensor]:
        """Compute as `Iteration` does, for one batch size; the next call overwrites the tensors."""
        if self._replay is None and not self._failed:
            self._capture(x0, label, first_sample)
        if self._replay is None:
            return self._iteration(x0, label, first_sample)
        self._copy_inputs(x0, label, first_sample)
        self._replay()
        return dict(self._log)

    def _capture(self, x0: Tensor, label: Tensor | None, first_sample: int) -> None:
        self._x0 = torch.empty_like(x0)
        self._label = None if label is None else torch.empty_like(label)
        self._first_sample = torch.zeros((), dtype=torch.int64, device=x0.device)
        self._copy_inputs(x0, label, first_sample)
        # The warm-up before the capture advances the power iterations, so buffers are restored.
        buffers = list(self._iteration.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            self._replay = capture(self._run, x0.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                f"training runs without a CUDA graph, because the capture failed: {error}",
                stacklevel=2,
            )
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)

    def _copy_inputs(self, x0: Tensor, label: Tensor | None, first_sample: int) -> None:
        self._x0.copy_(x0)
        if self._label is not None and label is not None:
            self._label.copy_(label)
        self._first_sample.fill_(first_sample)

    def _run(self) -> None:
        self._log = self._iteration(self._x0, self._label, self._first_sample)
