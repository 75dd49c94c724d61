"""A sampler's chain as CUDA graphs; a stub replaces the capture on machines without a GPU."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cdrl_fast import (
    CDRL,
    BackendUnavailable,
    ChainDiverged,
    NoiseSchedule,
    ResNetEnergy,
    Sampler,
    UNetInitializer,
    conditional,
    guided,
    mixture,
    product,
    reference,
)
from cdrl_fast.engine import Terms
from cdrl_fast.sampling import chain_graph
from tests.conftest import randomize

TOLERANCE = {"rtol": 0, "atol": 2e-5}


class CaptureStub:
    """A stub of `capture`: a replay calls the captured function again."""

    def __init__(self):
        self.captures, self.replays = 0, 0

    def __call__(self, work, device):
        self.captures += 1
        work()

        def replay():
            self.replays += 1
            work()

        return replay


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CDRL(
        randomize(ResNetEnergy(1, 32, (1, 2), 1, classes=2), std=0.02),
        randomize(
            UNetInitializer(1, 4, 32, (1, 1), 1, attention=(), dropout=0.0, classes=2), std=0.02
        ),
        NoiseSchedule(levels=3, steps=4),
    )


@pytest.fixture(params=["step", "chain"])
def kind(request):
    return request.param


@pytest.fixture
def stub(monkeypatch):
    """Graphs on the CPU, with the reference backends of the GPU operations."""
    capture = CaptureStub()
    monkeypatch.setattr(chain_graph, "capture", capture)
    monkeypatch.setattr("cdrl_fast.sampling.sampler.unavailable_reason", lambda frozen: None)
    for module in ("select", "initializer"):
        monkeypatch.setattr(f"cdrl_fast.engine.{module}.uses_gpu_passes", lambda *_: True)
    return capture


def samplers(model, kind):
    return (
        Sampler(model, precision="fp32", graph=kind),
        Sampler(model, precision="fp32", graph="off"),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"label": [1, 2, 0, 2, 1]}, {"label": 2, "guidance": 1.5}, {"steps": [2, 3, 1]}],
    ids=["plain", "labels", "guidance", "steps"],
)
def test_draws_the_samples_of_the_plain_chain(stub, model, kind, options):
    graphed, plain = samplers(model, kind)
    expected = plain.sample(5, seed=3, **options)
    torch.testing.assert_close(graphed.sample(5, seed=3, **options), expected, **TOLERANCE)


def test_one_capture_serves_seeds_labels_and_weights(stub, model, kind):
    graphed, plain = samplers(model, kind)
    first = graphed.sample(4, seed=0, label=1)
    randomize(model.energy, seed=5, std=0.02)
    randomize(model.initializer, seed=6, std=0.02)
    for options in ({"seed": 1, "label": 1}, {"seed": -7, "label": 2, "first_sample": 2**40}):
        torch.testing.assert_close(
            graphed.sample(4, **options), plain.sample(4, **options), **TOLERANCE
        )
    assert stub.captures == 1
    # Samples that were returned before are not overwritten.
    assert not torch.equal(first, graphed.sample(4, seed=0, label=1))


def test_one_capture_serves_weights_of_guidance(stub, model, kind):
    """A capture takes other weights of energies and initializers, and other labels."""
    graphed, plain = samplers(model, kind)
    for label, guidance in ((1, 1.5), (2, 0.5), (1, -0.5)):
        options = {"seed": 3, "label": label, "guidance": guidance}
        torch.testing.assert_close(
            graphed.sample(4, **options), plain.sample(4, **options), **TOLERANCE
        )
    assert stub.captures == 1
    graphed.sample(4, label=[1, 2, 1, 2], guidance=1.5)
    assert stub.captures == 2


def test_one_capture_serves_weights_per_sample(stub, model, kind, monkeypatch):
    graphed, plain = samplers(model, kind)
    weights = torch.tensor([0.5, 2.0, 0.0, -1.0])
    one, none = torch.tensor([1]), torch.tensor([0])
    for w, shares in ((weights, None), (1 - weights, (weights, 1 - weights))):
        terms = Terms((w, 1 - w), (one, none), shares)
        monkeypatch.setattr(
            "cdrl_fast.sampling.sampler.label_terms", lambda *_, terms=terms: (terms,)
        )
        torch.testing.assert_close(graphed.sample(4), plain.sample(4), **TOLERANCE)
    assert stub.captures == 1


def test_combinations_are_captured(stub, model, kind):
    """The components of a mixture differ between samples and between seeds."""
    density = mixture(guided(conditional(model, 1), model, 1.0), conditional(model, 2))
    graphed, plain = samplers(density, kind)
    for seed in (0, 1):
        torch.testing.assert_close(
            graphed.sample(6, seed=seed), plain.sample(6, seed=seed), **TOLERANCE
        )
    assert stub.captures == 1


def test_several_networks_are_captured(stub, model, kind):
    other = copy.deepcopy(model)
    randomize(other, seed=5)
    graphed, plain = samplers(product(model, other, base=model), kind)
    torch.testing.assert_close(graphed.sample(3), plain.sample(3), **TOLERANCE)
    assert stub.captures == 1


def test_replays_a_step_each_time_or_the_chain_once(stub, model):
    counts = {}
    for kind in ("step", "chain"):
        sampler, before = Sampler(model, precision="fp32", graph=kind), stub.replays
        sampler.sample(2, seed=1)
        counts[kind] = stub.replays - before
    assert counts == {"step": 12, "chain": 1}


def test_the_cache_of_graphs_is_bounded(stub, model, kind):
    sampler = Sampler(model, precision="fp32", graph=kind)
    for n in (1, 2, 3, 4, 5, 5, 4):
        sampler.sample(n, steps=1)
    assert stub.captures == 5
    sampler.sample(1, steps=1)
    assert stub.captures == 6
    assert len(sampler._graphs._graphs) == chain_graph.MAX_GRAPHS


def test_owns_the_memory_that_it_writes_into(stub, model, kind):
    sampler = Sampler(model, precision="fp32", graph=kind)
    sampler.sample(2, steps=1)
    (small,) = sampler._graphs._graphs.values()
    before = {buffer.data_ptr() for buffer in small._buffers}
    sampler.sample(64, steps=1)
    assert before
    assert before == {buffer.data_ptr() for buffer in small._buffers}
    large = {buffer.data_ptr() for buffer in sampler.networks.buffers()}
    assert not before & large


def test_batches_have_their_own_positions_in_the_stream(stub, model, kind):
    graphed, plain = samplers(model, kind)
    expected = plain.sample(5, seed=2)
    torch.testing.assert_close(graphed.sample(5, seed=2, batch_size=2), expected, **TOLERANCE)


def test_names_the_sample_that_diverged(stub, model, kind):
    sampler = Sampler(model, precision="fp32", graph=kind)
    with torch.no_grad():
        model.energy.stem.weight.fill_(float("nan"))
    with pytest.raises(ChainDiverged) as caught:
        sampler.sample(3, seed=1, first_sample=7)
    assert (caught.value.level, caught.value.step, caught.value.sample) == (3, 1, 7)


def test_traces_use_no_graphs(stub, model, kind):
    sampler = Sampler(model, precision="fp32", graph=kind)
    trace = sampler.sample_trace(2, seed=1)
    samples = trace.samples
    assert stub.captures == 0
    assert len(trace.states) == 4
    torch.testing.assert_close(samples, sampler.sample(2, seed=1), **TOLERANCE)


def test_a_failed_capture_costs_the_graph_alone(stub, model, monkeypatch):
    def fail(work, device):
        raise RuntimeError("no memory for a graph")

    expected = Sampler(model, precision="fp32", graph="off").sample(3, seed=1)
    monkeypatch.setattr(chain_graph, "capture", fail)
    sampler = Sampler(model, precision="fp32")
    assert sampler.graph == "step"
    with pytest.warns(
        UserWarning, match="without CUDA graphs, because a capture failed: no memory"
    ):
        samples = sampler.sample(3, seed=1)
    torch.testing.assert_close(samples, expected, **TOLERANCE)
    assert sampler.graph == "off"
    with pytest.raises(RuntimeError, match="no memory for a graph"):
        Sampler(model, precision="fp32", graph="chain").sample(3, seed=1)


@pytest.mark.parametrize("graph", ["off", "step", "chain"])
def test_one_sampler_serves_several_threads(stub, model, graph):
    sampler = Sampler(model, precision="fp32", graph=graph)
    expected = [sampler.sample(4, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for actual, reference_samples in zip(
            pool.map(lambda seed: sampler.sample(4, seed=seed), range(6)), expected, strict=True
        ):
            assert torch.equal(actual, reference_samples)


def test_inference_mode_leaves_nothing_behind(stub, model, kind):
    graphed, plain = samplers(model, kind)
    with torch.inference_mode():
        graphed.sample(3, seed=2)
        born_inside = Sampler(copy.deepcopy(model), precision="fp32", graph=kind)
    randomize(model.energy, seed=5, std=0.02)
    for sampler in (graphed, born_inside):
        sampler.sample(5, seed=2)
    torch.testing.assert_close(graphed.sample(3, seed=2), plain.sample(3, seed=2), **TOLERANCE)


def test_images_of_any_layout_are_scored(stub, model):
    sampler = Sampler(model, precision="fp32")
    images = torch.rand(3, 1, 4, 4).repeat(1, 1, 1, 1) * 2 - 1
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    layouts = (permuted, images.to(memory_format=torch.channels_last), images.mT.contiguous().mT)
    for layout in layouts:
        assert torch.equal(layout, images)
        densities = sampler.log_density(layout)
        torch.testing.assert_close(densities, sampler.log_density(images), rtol=0, atol=0)


def test_images_of_more_channels_take_the_reference(stub):
    torch.manual_seed(0)
    energy = ResNetEnergy(6, 8, (1, 2), 1)
    wide = CDRL(energy, None, NoiseSchedule(levels=2, steps=2), sample_shape=(6, 4, 4))
    samples = Sampler(wide, precision="fp32").sample(2)
    expected = reference.sample(wide, 2)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-4)
    with pytest.raises(BackendUnavailable, match="images of 1 to 4 channels, the energy takes 6"):
        Sampler(wide, precision="fp32", backend="triton")


def test_needs_a_gpu_and_says_so(model):
    assert Sampler(model).graph == "off"
    with pytest.raises(
        BackendUnavailable, match="graph='chain' is not available: CUDA graphs need"
    ):
        Sampler(model, graph="chain")
    with pytest.raises(ValueError, match="graph: expected one of"):
        Sampler(model, graph="always")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(model, kind, precision):
    """Samples are the same with and without graphs; a replay never waits for the device."""
    model = model.cuda()
    graphed = Sampler(model, precision=precision, graph=kind)
    plain = Sampler(model, precision=precision, graph="off")
    for options in ({"seed": 1}, {"seed": 2, "label": 1}, {"seed": 3, "label": 2, "guidance": 1.0}):
        torch.testing.assert_close(
            graphed.sample(5, **options), plain.sample(5, **options), rtol=0, atol=1e-3
        )
    # The larger batch replaces the networks' buffers, but the first graph still uses its own.
    graphed.sample(64, seed=4)
    torch.testing.assert_close(
        graphed.sample(5, seed=1), plain.sample(5, seed=1), rtol=0, atol=1e-3
    )
    (captured, *_) = graphed._graphs._graphs.values()
    torch.cuda.set_sync_debug_mode("error")
    try:
        captured._replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
