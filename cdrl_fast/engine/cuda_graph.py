"""Work on a CUDA device, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch


def capture(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that launches again what ``work`` launches on a CUDA device.

    ``work`` runs once before, on a stream of its own, so that kernels are built and memory is
    there; then once for the recording, which launches nothing.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: others, which read batches ahead, may wait for the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
