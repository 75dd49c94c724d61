"""CUDA graphs: work that is captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch


def capture(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture the launches of ``work`` on a CUDA device, and return a function that replays them.

    ``work`` first runs once on another stream, which builds kernels and allocates memory. It runs
    a second time for the capture, which launches nothing.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Only this thread's calls are checked: threads that load batches may wait for the device.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
