"""One training iteration: half precision, memory, loss scaling, networks of the user."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cdrl_fast import (
    CDRL,
    CheckpointError,
    NoiseSchedule,
    Precision,
    Sampler,
    TrainConfig,
    Trainer,
    _extension,
    reference,
)
from cdrl_fast.data import Dataset, load_data
from cdrl_fast.networks.recompute import set_recompute
from cdrl_fast.networks.spectral_norm import SpectralNorm, network_power_iteration
from cdrl_fast.storage.folder import read_folder
from cdrl_fast.training.recipe import load_recipe
from tests.training.live_memory import peak

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(_extension.load() is None, reason="bfloat16 is the compiled module's")


def gradients(trainer, iteration=0):
    x0, label = trainer.batches.at(iteration)
    trainer._gradients(x0, label, 0)
    return [
        torch.cat([p.grad.flatten().double() for p in network.parameters()])
        for _, network, _ in trainer._networks()
    ]


def digits(**options):
    """Return a trainer of the shipped digits model, with gradients as late in training."""
    return Trainer(
        CDRL.from_pretrained("digits"), load_data("digits"), TrainConfig(batch_size=64, **options)
    )


@compiled
def test_half_precision_adds_little_to_a_batchs_own_noise():
    exact = gradients(digits(precision="fp32"))
    half = gradients(digits(precision="bf16"))
    energy, initializer = (
        float((a - b).norm() / b.norm()) for a, b in zip(half, exact, strict=True)
    )
    # f⁺ and f⁻ nearly cancel; two batches differ by about 1.3 of a gradient's length.
    assert 0.01 < energy < 0.6
    assert 1e-4 < initializer < 0.5


def test_power_iterations_of_all_layers_equal_those_of_each(image_model):
    energy = image_model.energy.double()
    twin = copy.deepcopy(energy)
    network_power_iteration(energy)
    layers = [m for m in twin.modules() if isinstance(m, SpectralNorm)]
    before = [layer.u.clone() for layer in layers]
    for layer in layers:
        layer.power_iteration()
    moved = [not torch.equal(layer.u, u) for layer, u in zip(layers, before, strict=True)]
    assert any(moved)
    for actual, expected in zip(energy.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("recompute", ["activations", "blocks"])
def test_recomputing_changes_nothing(image_model, recompute):
    values = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    data = Dataset("random", values, np.ones(8, dtype=np.int64), ("a", "b", "c"))
    config = TrainConfig(batch_size=8, recompute="nothing")
    model = image_model.double()
    expected = gradients(Trainer(copy.deepcopy(model), data, config))
    config = replace(config, recompute=recompute)
    recomputed = gradients(Trainer(copy.deepcopy(model), data, config))
    for ours, reference_gradient in zip(recomputed, expected, strict=True):
        torch.testing.assert_close(ours, reference_gradient, rtol=1e-12, atol=1e-12)


def distances(actual, expected):
    return [float((a - b).norm() / b.norm()) for a, b in zip(actual, expected, strict=True)]


@compiled
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_losses_by_kernels_equal_those_by_torch():
    def by_torch():
        trainer = digits(precision="fp32")
        trainer._gradients._kernels = None
        return gradients(trainer)

    trainer = digits(precision="fp32")
    assert trainer._gradients._kernels is not None
    by_kernels, expected = gradients(trainer), by_torch()
    with torch.backends.mkldnn.flags(enabled=False):
        rounding = max(distances(by_torch(), expected))
    # f⁺ and f⁻ nearly cancel, and rounding flips signs of LeakyReLU: torch's own convolutions
    # differ by more than 1e-3 on processors with AVX-512.
    assert max(distances(by_kernels, expected)) < max(1e-3, rounding)
    again = gradients(digits(precision="fp32"))
    assert all(map(torch.equal, again, by_kernels))


@compiled
@pytest.mark.parametrize("recompute", ["nothing", "blocks"])
def test_recomputing_changes_nothing_for_kernels(recompute):
    expected = gradients(digits(precision="fp32"))
    actual = gradients(digits(precision="fp32", recompute=recompute))
    assert all(map(torch.equal, actual, expected))


@compiled
def test_kernels_are_removed_after_an_iteration():
    trainer = digits(precision="fp32")
    gradients(trainer)
    model = trainer.model
    y = torch.zeros(2, *model.sample_shape, requires_grad=True)
    (slope,) = torch.autograd.grad(model.energy(y, torch.zeros(1)).sum(), y, create_graph=True)
    slope.sum().backward()  # kernels could not be differentiated twice
    assert model.energy.stem.kernels is None


def reference_iteration(trainer):
    model = copy.deepcopy(trainer.model)
    set_recompute(model, "nothing")
    energy = torch.optim.Adam(model.energy.parameters(), lr=1e-4)
    initializer = torch.optim.AdamW(model.initializer.parameters(), lr=1e-4)
    x0, label = trainer.batches.at(0)

    def run():
        reference.training_iteration(
            model, x0, label, energy_optimizer=energy, initializer_optimizer=initializer
        )

    run()  # creates the optimizers' state
    return run


@compiled
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_iteration_takes_a_third_of_the_references_memory(precision):
    recipe = load_recipe("digits")
    data = load_data("digits")
    config = replace(recipe.training, precision=precision, batch_size=32)
    trainer = Trainer(recipe.model.build(data), data, config)
    plain = reference_iteration(trainer)
    trainer.step()
    reference_peak, ours = peak(plain), peak(trainer.step)
    assert ours <= reference_peak / 3, f"{ours / 1e6:.1f} MB of {reference_peak / 1e6:.1f}"


def test_live_memory_counts_what_is_alive():
    def work():
        a = torch.ones(1000)
        b = a + 1
        del a
        return b.view(10, 100) * 2 + b.sum()

    # The vectors b, 2 b and the result, and the scalar b.sum().
    assert peak(work) == 3 * 4000 + 4


class UserNetwork(nn.Module):
    """A network that the library does not know; in train mode its spectral norm changes."""

    def __init__(self, dim, outs):
        super().__init__()
        self.outs = outs
        self.layers = nn.Sequential(nn.Linear(dim + 1, 32), nn.Dropout(0.1), nn.SiLU())
        self.last = nn.utils.parametrizations.spectral_norm(nn.Linear(32, max(outs, 1)))

    def forward(self, y, logsnr, label=None):
        level = (logsnr / 10).expand(len(y))[:, None]
        out = self.last(self.layers(torch.cat([y, level], dim=1)))
        return y + out if self.outs else out[:, 0]


@pytest.fixture
def user_networks():
    """A function that builds a user's networks, and data for them."""
    points = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)

    def networks():
        torch.manual_seed(0)
        return UserNetwork(2, 0), UserNetwork(2, 2)

    return networks, Dataset("points", points, None, (), None)


SCHEDULE = NoiseSchedule(3, 4, kappa=1e-3, step_scale="constant")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_modules_train(precision, user_networks):
    networks, data = user_networks
    model = CDRL(*networks(), SCHEDULE, sample_shape=(2,))
    trainer = Trainer(model, data, TrainConfig(batch_size=50, warmup=0, precision=precision))
    assert trainer.precision == Precision(precision)
    before = [p.detach().clone() for p in model.parameters()]
    log = trainer.fit(3)
    assert all(np.isfinite(v) for v in log.values())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    # An energy's last bias cancels in f⁻ - f⁺.
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) - 1


def test_networks_without_buffers_train(user_networks):
    networks, data = user_networks
    energy, initializer = networks()
    for network in (energy, initializer):
        nn.utils.parametrize.remove_parametrizations(network.last, "weight")
    model = CDRL(energy, initializer, SCHEDULE, sample_shape=(2,))
    assert list(model.buffers()) == []
    trainer = Trainer(model, data, TrainConfig(batch_size=50, warmup=0))
    before = [p.clone() for p in trainer.ema.parameters()]
    trainer.fit(1)
    assert not all(map(torch.equal, trainer.ema.parameters(), before))


def test_a_run_of_any_modules_is_stored(user_networks, tmp_path):
    """Checkpoints have their weights; the user builds the modules."""
    build, data = user_networks

    def networks():
        pair = build()
        for network in pair:
            network.layers[1].p = 0.0  # torch's dropout generator is not in a checkpoint
        return pair

    config = TrainConfig(batch_size=50, warmup=0, checkpoint_every=2)
    uninterrupted = Trainer(CDRL(*networks(), SCHEDULE, sample_shape=(2,)), data, config)
    uninterrupted.fit(4)
    Trainer(CDRL(*networks(), SCHEDULE, sample_shape=(2,)), data, config).fit(2, folder=tmp_path)
    resumed = Trainer.resume(tmp_path, data, networks=networks())
    resumed.fit(4, folder=tmp_path)
    loaded = CDRL.from_pretrained(tmp_path, networks=networks())
    pairs = ((resumed.model, uninterrupted.model), (loaded, uninterrupted.ema))
    for actual, expected in pairs:
        for name, value in expected.state_dict().items():
            assert torch.equal(actual.state_dict()[name], value)
    assert torch.equal(Sampler(loaded).sample(3), Sampler(uninterrupted.ema).sample(3))
    with pytest.raises(CheckpointError, match="UserNetwork is not a network of this library"):
        CDRL.from_pretrained(tmp_path)


def scaled(trainer, scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer._scaler = trainer._gradients.scaler = scaler
    return trainer


def test_loss_scaling_is_exact_and_stored(image_model, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    data = Dataset("random", values, np.ones(8, dtype=np.int64), ("a", "b", "c"))
    config = TrainConfig(batch_size=8, warmup=0, precision="fp32")
    plain = Trainer(copy.deepcopy(image_model), data, config)
    ours = scaled(Trainer(copy.deepcopy(image_model), data, config), 2.0**10)
    for trainer in (plain, ours):
        trainer.fit(3)
    for a, b in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)
    ours.save(tmp_path / "run")
    resumed = scaled(Trainer.resume(tmp_path / "run", data), 1.0)
    resumed._restore(tmp_path / "run", read_folder(tmp_path / "run"))
    assert resumed._scaler.state_dict() == ours._scaler.state_dict()


def test_an_overflow_halves_the_scale_and_skips(image_model):
    values = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    data = Dataset("random", values, np.ones(8, dtype=np.int64), ("a", "b", "c"))
    trainer = scaled(Trainer(image_model, data, TrainConfig(batch_size=8, warmup=0)), 2.0**10)
    weight = image_model.initializer.head.weight
    handle = weight.register_hook(lambda g: g * float("inf"))
    before = weight.detach().clone()
    trainer.step()
    handle.remove()
    assert trainer._scaler.get_scale() == 2.0**9
    assert trainer.iteration == 1
    assert torch.equal(weight, before)
    trainer.step()
    assert not torch.equal(weight, before)


def test_precision_by_name():
    with pytest.raises(ValueError, match="precision: expected one of"):
        Precision("half")
    assert not Precision("bf16").scaler(CPU).is_enabled()
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    with Precision("bf16").autocast(CPU):
        assert linear(x).dtype == torch.bfloat16
    with Precision("fp32").autocast(CPU):
        assert linear(x).dtype == torch.float32
