"""CUDA graphs: work that is captured once and replayed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch


def capture(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture the launches of ``work`` on a CUDA device, and return a function that replays them.

    ``work`` first runs once, which builds kernels and allocates memory, and a second time for the
    capture, which launches nothing; both on one stream of the device.

    Args:
        work: launches kernels on tensors of the device.
        device: the device, which need not be the current one.

    Raises:
        RuntimeError: the work cannot be captured, or launched nothing. The stream that was current
            is current again.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        # torch's own stream for captures is one per process, on the device of the first capture.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            work()
        before.wait_stream(stream)
        # Autograd's nodes of the warm-up, kept by reference cycles, would belong to its stream.
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        try:
            with warnings.catch_warnings():
                # Otherwise each replay of an empty graph would do nothing, in silence.
                warnings.filterwarnings("error", message="The CUDA Graph is empty")
                # Only this thread's calls are checked: threads that load batches may wait for the
                # device.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    work()
        except BaseException as error:
            # A capture that fails as it ends leaves its own stream current.
            torch.cuda.set_stream(before)
            if isinstance(error, Warning):
                raise RuntimeError(f"the capture recorded nothing: {error}") from error
            raise
    return graph.replay
