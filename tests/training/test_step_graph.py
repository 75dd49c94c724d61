"""A training iteration as a CUDA graph; without a GPU, with a stand-in for the capture."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cdrl_fast import CDRL, MLPEnergy, NoiseSchedule, ResNetEnergy, TrainConfig, Trainer
from cdrl_fast.data import Dataset
from cdrl_fast.storage.locate import newest_readable
from cdrl_fast.training.step import Iteration
from cdrl_fast.training.step_graph import IterationGraph
from tests.conftest import weights
from tests.sampling.test_chain_graph import CaptureStub

CONFIG = TrainConfig(batch_size=8, warmup=0, energy_lr=1e-3, initializer_lr=1e-3, precision="fp32")
# Operations that cannot be captured: the host waits, or copies from its memory.
FOR_THE_HOST = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "lift_fresh")


@pytest.fixture
def images():
    values = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    return Dataset("random", values, np.arange(40) % 3 + 1, ("zero", "one", "two"))


@pytest.fixture
def recorder(monkeypatch):
    """A stand-in for graphs on the CPU; GPU operations run by their reference backend."""
    recorder = CaptureStub()
    monkeypatch.setattr("cdrl_fast.training.step_graph.capture", recorder)
    monkeypatch.setattr("cdrl_fast.engine.select.uses_gpu_passes", lambda *_: True)
    monkeypatch.setattr(Iteration, "capturable", property(lambda self: self.config.graph == "auto"))
    return recorder


def pair(model, data, config):
    """Return a trainer with a graph and one without."""
    graphed = Trainer(copy.deepcopy(model), data, config)
    plain = Trainer(copy.deepcopy(model), data, replace(config, graph="off"))
    assert isinstance(graphed._compute, IterationGraph)
    assert plain._compute is plain._gradients
    return graphed, plain


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2, "variance_reduction": False},
        {"recompute": "blocks", "label_drop": 0.5, "seed": -3},
    ],
    ids=["plain", "parts", "recomputed"],
)
def test_a_run_with_a_graph_equals_one_without(recorder, image_model, images, options):
    graphed, plain = pair(image_model, images, replace(CONFIG, **options))
    for iteration in range(3):
        actual, expected = graphed.step(), plain.step()
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-6), iteration
    torch.testing.assert_close(weights(graphed.model), weights(plain.model), rtol=0, atol=1e-5)
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_a_model_without_initializer(recorder, images):
    torch.manual_seed(0)
    model = CDRL(
        ResNetEnergy(1, 8, (1, 2), 1), None, NoiseSchedule(steps=3), sample_shape=(1, 8, 8)
    )
    graphed, plain = pair(model, images, CONFIG)
    for _ in range(2):
        assert graphed.step() == pytest.approx(plain.step(), rel=1e-4, abs=1e-6)


def test_goes_on_after_a_roll_back_or_a_resume(recorder, image_model, images, tmp_path):
    graphed, plain = pair(image_model, images, CONFIG)
    graphed.fit(2, folder=tmp_path)
    plain.fit(5)
    graphed.step()
    graphed._restore(*newest_readable(tmp_path))
    graphed.fit(5)
    resumed = Trainer.resume(tmp_path, images)
    resumed.fit(5)
    for trainer in (graphed, resumed):
        torch.testing.assert_close(weights(trainer.model), weights(plain.model), rtol=0, atol=1e-5)


def test_without_a_capture_it_warns_and_trains(recorder, image_model, images, monkeypatch):
    def refused(work, device):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("cdrl_fast.training.step_graph.capture", refused)
    graphed, plain = pair(image_model, images, CONFIG)
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        graphed.step()
    graphed.step()
    plain.step()
    plain.step()
    torch.testing.assert_close(weights(graphed.model), weights(plain.model), rtol=0, atol=1e-5)


class Operations(TorchDispatchMode):
    """A recorder of the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nothing_in_it_waits_for_the_host(recorder, image_model, images, precision, monkeypatch):
    # On GPUs torch's one_hot reads no value; on CPUs it does.
    monkeypatch.setattr(
        "cdrl_fast.networks.layers.F.one_hot",
        lambda label, classes: (label[:, None] == torch.arange(classes)).long(),
    )
    config = replace(CONFIG, precision=precision, variance_reduction=False)
    trainer, _ = pair(image_model, images, config)
    x0, label = trainer.batches.at(0)
    first = torch.zeros((), dtype=torch.int64)
    trainer._gradients(x0, label, first)
    with Operations() as seen:
        trainer._gradients(x0, label, first)
    assert "convolution" in seen.names
    assert [n for n in seen.names if any(part in n for part in FOR_THE_HOST)] == []


def test_is_for_images_on_one_gpu(image_model, images):
    points = Dataset("points", np.zeros((8, 2), dtype=np.float32), None, (), None)
    point_model = CDRL(MLPEnergy(2, 16, (1,)), None, NoiseSchedule(steps=2))
    for model, data in ((image_model, images), (point_model, points)):
        assert isinstance(Trainer(model, data, CONFIG)._compute, Iteration)
    with pytest.raises(ValueError, match="graph: Input should be .auto. or .off., got 'always'"):
        TrainConfig(graph="always")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(image_model, images, precision):
    """The same run with and without; nothing waits for the device while it is replayed."""
    config = replace(CONFIG, precision=precision)
    graphed, plain = pair(image_model.cuda(), images, config)
    for _ in range(3):
        assert graphed.step() == pytest.approx(plain.step(), rel=2e-2, abs=2e-3)
    assert graphed._compute._replay is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        graphed._compute._replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
