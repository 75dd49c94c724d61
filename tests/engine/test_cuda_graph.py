"""The capture of CUDA graphs, with a mock of ``torch.cuda``: device, stream, order, failures."""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from cdrl_fast.engine.cuda_graph import capture

DEVICE = torch.device("cuda:1")


class Cuda:
    """A mock of what `capture` calls; it records what happens on which device and stream."""

    def __init__(self, fail=False, empty=False):
        self.fail, self.empty = fail, empty
        self.device_index, self.streams, self.events = 0, {0: "default 0", 1: "default 1"}, []
        self.graph_object = SimpleNamespace(replay=lambda: self.events.append("replay"))

    @property
    def current(self):
        return self.streams[self.device_index]

    def patch(self, monkeypatch):
        replacements = {
            "device": self.device,
            "current_stream": lambda device=None: self.stream_object(self.current),
            "Stream": lambda device=None: self.stream_object(f"side {self.device_index}"),
            "stream": self.stream,
            "set_stream": lambda s: self.streams.update({self.device_index: s.name}),
            "CUDAGraph": lambda: self.graph_object,
            "graph": self.graph,
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(torch.cuda, name, replacement)

    def stream_object(self, name):
        def wait_stream(other):
            self.events.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait_stream)

    @contextmanager
    def device(self, device):
        before, self.device_index = self.device_index, device.index
        yield
        self.device_index = before

    @contextmanager
    def stream(self, stream):
        before = self.current
        self.streams[self.device_index] = stream.name
        yield
        self.streams[self.device_index] = before

    @contextmanager
    def graph(self, graph, *, stream=None, capture_error_mode):
        assert graph is self.graph_object
        assert capture_error_mode == "thread_local"
        before = self.current
        # Without a stream torch takes one of the device of the first capture.
        self.streams[self.device_index] = "side 0" if stream is None else stream.name
        self.events.append("capture")
        yield
        if self.fail:  # as torch does, which leaves the capture's stream current
            raise RuntimeError("operation not permitted when stream is capturing")
        self.streams[self.device_index] = before
        if self.empty:
            warnings.warn("The CUDA Graph is empty. This usually means …", stacklevel=1)

    def work(self):
        self.events.append(f"work on {self.current}")


def test_everything_is_on_the_device_of_the_tensors_and_on_one_stream(monkeypatch):
    cuda = Cuda()
    cuda.patch(monkeypatch)
    replay = capture(cuda.work, DEVICE)
    assert cuda.events == [
        "side 1 waits for default 1",
        "work on side 1",
        "default 1 waits for side 1",
        "capture",
        "work on side 1",
    ]
    assert (cuda.device_index, cuda.current) == (0, "default 0")
    replay()
    assert cuda.events[-1] == "replay"


def test_a_failure_restores_the_stream(monkeypatch):
    cuda = Cuda(fail=True)
    cuda.patch(monkeypatch)
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(cuda.work, DEVICE)
    assert cuda.streams == {0: "default 0", 1: "default 1"}


def test_an_empty_graph_is_an_error(monkeypatch):
    cuda = Cuda(empty=True)
    cuda.patch(monkeypatch)
    with pytest.raises(RuntimeError, match="the capture recorded nothing: The CUDA Graph is empty"):
        capture(cuda.work, DEVICE)
    assert cuda.streams == {0: "default 0", 1: "default 1"}
