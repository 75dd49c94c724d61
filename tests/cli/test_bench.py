"""`cdrl-fast bench`: its FLOP counts, its figures, and the samples of the contenders."""

import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, NoiseSchedule, ResNetEnergy, Sampler, reference
from cdrl_fast.cli.bench import bench, flop_per_sample, hand_tuned
from cdrl_fast.cli.main import main


def test_flop_of_a_network_are_those_counted_on_paper():
    energy = ResNetEnergy(1, 8, (1,), 1)
    model = CDRL(energy, None, NoiseSchedule(levels=2, steps=3), sample_shape=(1, 6, 6))
    pixels = 36
    convolutions = 2 * 9 * pixels * (1 * 8 + 8 * 8 + 8 * 8)
    # The embedding 8 → 32 → 32, the block's projection and the head are evaluated once per
    # gradient, and nothing is propagated back to the level.
    maps = 2 * (8 * 32 + 32 * 32 + 32 * 8 + 32 * 8)
    assert flop_per_sample(model) == 7 * (2 * convolutions + maps)
    assert flop_per_sample(model, steps=1) == 3 * (2 * convolutions + maps)


def test_the_hand_tuned_model_draws_the_models_samples():
    model = CDRL.from_pretrained("digits")
    expected = reference.sample(model, 8, steps=2, label="3")
    actual = Sampler(hand_tuned(model)).sample(8, steps=2, label="3")
    # Half precision changes samples a little; an unrelated sample differs by about 1.
    assert (actual - expected).abs().mean() < 0.1
    points = CDRL(MLPEnergy(2, 8, (1,)), None, NoiseSchedule(2, 2))
    assert Sampler(hand_tuned(points)).sample(3).shape == (3, 2)


def test_figures_follow_from_the_times():
    model = CDRL.from_pretrained("digits")
    table = bench(model, batch=4, steps=1, rounds=1)
    names = [figure.name for figure in table.figures]
    assert names[:3] == ["eager", "hand-tuned", "cdrl-fast, fp32"]
    assert table.flop_per_sample == flop_per_sample(model, 1)
    for figure in table.figures:
        assert figure.samples_per_second == pytest.approx(4 / figure.seconds)
        minimum_seconds = 4 * table.flop_per_sample / table.flop_rate
        assert figure.roofline_share == pytest.approx(minimum_seconds / figure.seconds)
        assert figure.memory > 0
    _, header, *rows = str(table).splitlines()
    assert "times eager" in header
    assert "of the roofline" in header
    assert len(rows) == len(names)


def test_an_energy_of_the_users_own():
    class Well(torch.nn.Module):
        def forward(self, y, logsnr, label=None):
            return -(y**2).sum(1)

    model = CDRL(Well(), None, NoiseSchedule(2, 2), sample_shape=(3,))
    assert [f.name for f in bench(model, batch=2, rounds=1).figures] == [
        "eager", "hand-tuned", "cdrl-fast, fp32",
    ]  # fmt: skip


def test_command_line(capsys):
    assert main(["bench", "--batch", "2", "--steps", "1", "--rounds", "1"]) == 0
    assert "samples/s" in capsys.readouterr().out
    assert main(["bench", "--batch", "0"]) == 2
    assert "batch and rounds must be at least 1" in capsys.readouterr().err
