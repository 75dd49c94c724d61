"""`Trainer`: the iteration against the reference, schedules, exact resuming, bad input."""

import copy
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdrl_fast import CDRL, ChainDiverged, CheckpointError, _extension, reference
from cdrl_fast.data import Dataset
from cdrl_fast.ops.keys import TrainingKeys
from cdrl_fast.precision import fast_bfloat16
from cdrl_fast.storage.folder import json_to_bytes, read_folder, write_folder
from cdrl_fast.training.config import TrainConfig
from cdrl_fast.training.levels import NoiseTable, noised_pair
from cdrl_fast.training.trainer import Trainer
from tests.conftest import weights

CONFIG = TrainConfig(
    batch_size=6, energy_lr=1e-3, initializer_lr=1e-3, warmup=4, initializer_warmup_offset=1,
    ema_decay=0.5, checkpoint_every=2, log_every=1, keep=2,
)  # fmt: skip


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    return Dataset("random", values, rng.integers(1, 4, 20), ("zero", "one", "two"))


@pytest.mark.parametrize("variance_reduction", [True, False])
@pytest.mark.parametrize("drl", [False, True])
def test_an_iteration_equals_the_reference_iteration(image_model, images, variance_reduction, drl):
    model = image_model.double()
    if drl:
        model.initializer = None
    twin = copy.deepcopy(model)
    config = TrainConfig(
        batch_size=6, energy_lr=1e-3, initializer_lr=2e-3, warmup=0, label_drop=0.3, seed=5,
        variance_reduction=variance_reduction,
    )  # fmt: skip
    trainer = Trainer(model, images, config)
    energy_optimizer = torch.optim.Adam(twin.energy.parameters(), lr=1e-3)
    initializer_optimizer = None
    if not drl:
        parameters = twin.initializer.parameters()
        initializer_optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    for iteration in range(3):
        x0, label = images.batch(trainer.batches.indices(iteration))
        expected = reference.training_iteration(
            twin, x0.double(), label, energy_optimizer=energy_optimizer,
            initializer_optimizer=initializer_optimizer, seed=5, iteration=iteration,
            variance_reduction=variance_reduction, label_drop=0.3,
        )  # fmt: skip
        log = trainer.step()
        for name, value in expected.items():
            assert log[name] == pytest.approx(float(value), abs=1e-12, rel=1e-9)
    torch.testing.assert_close(weights(model), weights(twin), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_noised_pairs_have_the_right_moments(variance_reduction, image_model):
    schedule, n = image_model.schedule, 200_000
    table = NoiseTable.from_schedule(schedule, torch.device("cpu"), torch.float64)
    for t in (1, 3, 6):
        generator = torch.Generator().manual_seed(t)
        noise = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
        x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
        posterior = None if variance_reduction else noise[1]
        level = torch.full((n,), t)
        x_t, x_before = noised_pair(table, x0, level, noise[0], posterior)
        for x, index in ((x_t, t), (x_before, t - 1)):
            variance = schedule.noise_variance[index]
            mean = 0.7 * np.sqrt(schedule.alpha_bar[index])
            assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n)
            assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / n)
        # x_t given x_{t-1} is √a_t x_{t-1} + σ_t z: so must be the posterior's covariance.
        if not variance_reduction:
            a = schedule.alpha_bar[t] / schedule.alpha_bar[t - 1]
            expected = np.sqrt(a) * schedule.noise_variance[t - 1]
            covariance = ((x_t - x_t.mean()) * (x_before - x_before.mean())).mean()
            scale = np.sqrt(schedule.noise_variance[t] * schedule.noise_variance[t - 1])
            assert abs(covariance - expected) < 4 * scale * np.sqrt(2 / n)


def test_rates_clipping_and_averages(image_model, images):
    trainer = Trainer(image_model, images, CONFIG)
    before = weights(trainer.model.energy)
    trainer.step()
    # The first energy update has learning rate 0: only u and v have moved.
    after = {k: v for k, v in trainer.model.energy.named_parameters()}
    assert trainer.energy_optimizer.param_groups[0]["lr"] == 0.0
    assert trainer.initializer_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)
    moved = weights(trainer.model.energy) - before
    sizes = [v.numel() for v in trainer.model.energy.state_dict().values()]
    for (name, _), part in zip(
        trainer.model.energy.state_dict().items(), moved.split(sizes), strict=True
    ):
        assert (name in after) == bool((part == 0).all()), name
    ema = weights(trainer.ema.initializer)
    trainer.step()
    assert trainer.energy_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)
    gradients = [p.grad for p in trainer.model.energy.parameters()]
    assert torch.stack([g.norm() for g in gradients]).norm() <= 1.0001
    expected = ema + (1 - 3 / 12) * (weights(trainer.model.initializer) - ema)
    torch.testing.assert_close(weights(trainer.ema.initializer), expected)
    live = dict(trainer.model.energy.named_buffers())
    assert all(torch.equal(b, live[k]) for k, b in trainer.ema.energy.named_buffers())


def test_label_drop_and_data_order(image_model, images):
    config = TrainConfig(batch_size=500, label_drop=0.25)
    labels = Trainer(image_model, images, config).batches.at(0)[1]
    assert abs((labels == 0).float().mean() - 0.25) < 4 * (0.25 * 0.75 / 500) ** 0.5
    batches = Trainer(image_model, images, CONFIG).batches
    rows = np.concatenate([batches.indices(i) for i in range(10)])
    for epoch in rows.reshape(3, 20):
        assert sorted(epoch) == list(range(20))
    assert not np.array_equal(rows[:20], rows[20:40])


def test_flip_mirrors_half_of_the_images(image_model, images):
    plain = Trainer(image_model, images, TrainConfig(batch_size=400)).batches.at(0)[0]
    config = TrainConfig(batch_size=400, flip=True)
    flipped = Trainer(image_model, images, config).batches.at(0)[0]
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == plain).flatten(1).all(1)).all()
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 20


def test_resume_is_bit_identical(image_model, images, tmp_path):
    twin = copy.deepcopy(image_model)
    uninterrupted = Trainer(image_model, images, CONFIG)
    uninterrupted.fit(7)
    first = Trainer(twin, images, CONFIG)
    first.fit(3, folder=tmp_path)
    resumed = Trainer.resume(tmp_path, images)
    assert resumed.iteration == 3
    resumed.fit(7, folder=tmp_path)
    assert torch.equal(weights(resumed.model), weights(uninterrupted.model))
    assert torch.equal(weights(resumed.ema), weights(uninterrupted.ema))
    loaded = CDRL.from_pretrained(tmp_path)
    assert torch.equal(weights(loaded), weights(uninterrupted.ema))
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["iteration"] for x in lines] == [1, 2, 3, 4, 5, 6, 7]
    checkpoints = sorted(f.name for f in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == ["00000006", "00000007"]


@pytest.mark.skipif(_extension.load() is None, reason="bfloat16 is the compiled module's")
def test_the_chain_has_its_precision(image_model, images):
    revised = []
    for precision in ("fp32", "bf16"):
        trainer = Trainer(image_model, images, replace(CONFIG, precision=precision))
        assert trainer.precision.name == precision
        keys = TrainingKeys(trainer.config.seed, 0)
        level, x, _ = trainer._gradients.noised(trainer.batches.at(0)[0], keys)
        revised.append(trainer._gradients.revise(x, x, level, None, keys)[0])
        assert revised[-1].dtype == torch.float32
    difference = (revised[0] - revised[1]).abs()
    assert 0 < difference.median() < 0.01


def test_automatic_precision(image_model, images):
    class Other(type(image_model.energy)):
        pass

    fast = "bf16" if fast_bfloat16() else "fp32"
    assert Trainer(image_model, images).precision.name == fast
    image_model.energy.__class__ = Other
    assert Trainer(image_model, images).precision.name == "fp32"
    assert Trainer(image_model.double(), images).precision.name == "fp64"


def test_precision_that_does_not_fit(image_model, images):
    with pytest.raises(ValueError, match='chain of torch.float32 cannot be "fp64"'):
        Trainer(image_model, images, TrainConfig(precision="fp64"))
    with pytest.raises(ValueError, match="precision: Input should be .auto., .fp64.*got .half."):
        Trainer(image_model, images, TrainConfig(precision="half"))
    with pytest.raises(ValueError, match='chain of torch.float64 cannot be "fp32"'):
        Trainer(image_model.double(), images, TrainConfig(precision="fp32"))


def test_resumed_runs_keep_their_precision(image_model, images, tmp_path):
    """Runs without a stored precision were in full precision."""
    folder = Trainer(image_model, images, replace(CONFIG, precision="fp32")).save(tmp_path / "new")
    files = read_folder(folder)
    stored = json.loads(files["config.json"])
    del stored["training"]["config"]["precision"]
    files["config.json"] = json_to_bytes(stored)
    write_folder(tmp_path / "old", files)
    for name in ("new", "old"):
        for config in (None, CONFIG):
            trainer = Trainer.resume(tmp_path / name, images, config=config)
            assert (trainer.precision.name, trainer.config.precision) == ("fp32", "fp32")
    automatic = Trainer(image_model, images, CONFIG)
    automatic.save(tmp_path / "automatic")
    resumed = Trainer.resume(tmp_path / "automatic", images)
    assert resumed.precision == automatic.precision
    config = replace(CONFIG, precision="fp32")
    resumed = Trainer.resume(tmp_path / "automatic", images, config=config)
    assert resumed.precision.name == "fp32"


def test_ctrl_c_writes_a_checkpoint(image_model, images, tmp_path):
    twin = copy.deepcopy(image_model)
    trainer = Trainer(image_model, images, CONFIG)
    step = trainer.step

    def interrupted():
        if trainer.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(100, folder=tmp_path)
    assert trainer.iteration == 3
    resumed = Trainer.resume(tmp_path, images)
    resumed.fit(5)
    uninterrupted = Trainer(twin, images, CONFIG)
    uninterrupted.fit(5)
    assert torch.equal(weights(resumed.model), weights(uninterrupted.model))


def test_previews_and_metrics(image_model, images, tmp_path):
    config = TrainConfig(batch_size=6, warmup=0, preview_every=2, metrics_every=3, log_every=5)
    seen = []
    Trainer(image_model, images, config).fit(
        4, folder=tmp_path, preview=lambda t, path: seen.append((t.iteration, path.name)),
        evaluate=lambda t: {"quality": 0.5},
    )  # fmt: skip
    assert seen == [(2, "00000002"), (4, "00000004")]
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["metrics"] for x in lines if "metrics" in x] == [{"quality": 0.5}]


def test_non_finite_training_keeps_the_weights(image_model, images):
    trainer = Trainer(image_model, images, CONFIG)
    trainer.fit(2)
    parameters = [p.clone() for p in trainer.model.parameters()]
    broken = torch.full((6, 1, 8, 8), float("nan"))
    trainer.batches.at = lambda iteration: (broken, torch.ones(6, dtype=torch.int64))
    with pytest.raises(ChainDiverged, match="iteration 2, step 1: the training chain became non-f"):
        trainer.step()
    after = trainer.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(parameters, after, strict=True))
    assert trainer.iteration == 2


def test_no_network_is_updated_when_one_gradient_is_not_finite(image_model, images):
    trainer = Trainer(image_model, images, TrainConfig(batch_size=6, warmup=0))
    parameters = [p.clone() for p in trainer.model.parameters()]
    weight = trainer.model.initializer.head.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    with pytest.raises(ChainDiverged, match="iteration 0, initializer_grad_norm is inf"):
        trainer.step()
    after = trainer.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(parameters, after, strict=True))


def test_dropout_is_torchs_again_after_an_iteration(image_model, images):
    """A loop of the caller's own draws new masks in each call."""
    Trainer(image_model, images, CONFIG).step()
    x, level = torch.ones(2, 1, 8, 8), torch.zeros(2)
    image_model.initializer.train()
    assert not torch.equal(image_model.initializer(x, level), image_model.initializer(x, level))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: .* greater than or equal to 1, got 0"),
        ({"energy_lr": 0.0}, "energy_lr: .* greater than 0, got 0.0"),
        ({"energy_lr": float("nan")}, "energy_lr: .* a finite number, got nan"),
        ({"energy_lr": -1.0}, "energy_lr: .* greater than 0"),
        (
            {"initializer_warmup_offset": -600},
            "initializer_warmup_offset: .* to 0, got -600",
        ),
        ({"batch_size": 2.5}, "batch_size: .* a valid integer, got 2.5"),
        ({"precision": "int8"}, "precision: .* .auto., .*, got .int8."),
        ({"seed": 2**70}, "seed: .* less than 18446744073709551616"),
        ({"shard": 1}, "shard: .* a valid boolean, got 1"),
        ({"warmup": -1}, "warmup: .* greater than or equal to 0"),
        ({"label_drop": 1.0}, "label_drop: .* less than 1, got 1.0"),
        ({"keep": 0, "patience": "no"}, "patience: .* integer, got .no.; keep: "),
        ({"lr": 1}, "lr: unknown; expected accumulate, batch_size, .*, got 1"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_data_that_does_not_fit(image_model, point_model, images):
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(1, 8, 8\) from 'random'"):
        Trainer(point_model, images)
    unlabelled = Dataset("plain", images.values, None, ())
    with pytest.raises(ValueError, match="at most 3 classes.* got no labels from 'plain'"):
        Trainer(image_model, unlabelled)
    points = Dataset("points", np.zeros((4, 2), dtype=np.float32), None, (), None)
    with pytest.raises(ValueError, match="flip needs images"):
        Trainer(point_model, points, TrainConfig(flip=True))


def test_resume_refuses_other_folders_and_data(image_model, images, tmp_path):
    with pytest.raises(CheckpointError, match="no saved model or checkpoint here"):
        Trainer.resume(tmp_path / "nothing", images)
    image_model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="expected a training checkpoint, got a saved model"):
        Trainer.resume(tmp_path / "model", images)
    Trainer(image_model, images, CONFIG).save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="expected the 20 samples of 'random' .*, got 5"):
        Trainer.resume(tmp_path / "run", images.subset(np.arange(5)))
