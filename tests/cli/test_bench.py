"""`cdrl-fast bench`: what it counts, and that all its contenders draw the same samples."""

import pytest
import torch

from cdrl_fast import CDRL, MLPEnergy, NoiseSchedule, ResNetEnergy, Sampler, reference
from cdrl_fast.cli import main
from cdrl_fast.cli.bench import afternoon, bench, operations


def test_operations_of_a_network_counted_by_hand():
    energy = ResNetEnergy(1, 8, (1,), 1)
    model = CDRL(energy, None, NoiseSchedule(levels=2, steps=3), sample_shape=(1, 6, 6))
    pixels = 36
    convolutions = 2 * 9 * pixels * (1 * 8 + 8 * 8 + 8 * 8)
    # Of the embedding 8 → 32 → 32, the block's row and the head there is one evaluation a gradient
    # and no way back.
    maps = 2 * (8 * 32 + 32 * 32 + 32 * 8 + 32 * 8)
    assert operations(model) == 7 * (2 * convolutions + maps)
    assert operations(model, steps=1) == 3 * (2 * convolutions + maps)


def test_the_afternoons_model_is_the_model():
    model = CDRL.from_pretrained("digits")
    expected = reference.sample(model, 8, steps=2, label="3")
    got = Sampler(afternoon(model)).sample(8, steps=2, label="3")
    # In half precision; an unrelated sample differs by about 1.
    assert (got - expected).abs().mean() < 0.1
    points = CDRL(MLPEnergy(2, 8, (1,)), None, NoiseSchedule(2, 2))
    assert Sampler(afternoon(points)).sample(3).shape == (3, 2)


def test_figures_follow_from_the_times():
    model = CDRL.from_pretrained("digits")
    found = bench(model, batch=4, steps=1, rounds=1)
    names = [figure.name for figure in found.figures]
    assert names[:3] == ["eager", "afternoon", "ours, fp32"]
    assert found.operations == operations(model, 1)
    for figure in found.figures:
        assert figure.samples_per_second == pytest.approx(4 / figure.seconds)
        floor = 4 * found.operations / found.rate
        assert figure.share == pytest.approx(floor / figure.seconds)
        assert figure.memory > 0
    shown = str(found)
    assert "times eager" in shown
    assert len(shown.splitlines()) == 2 + len(names)


def test_a_users_energy():
    class Well(torch.nn.Module):
        def forward(self, y, logsnr, label=None):
            return -(y**2).sum(1)

    model = CDRL(Well(), None, NoiseSchedule(2, 2), sample_shape=(3,))
    assert [f.name for f in bench(model, batch=2, rounds=1).figures] == [
        "eager", "afternoon", "ours, fp32",
    ]  # fmt: skip


def test_command_line(capsys):
    assert main(["bench", "--batch", "2", "--steps", "1", "--rounds", "1"]) == 0
    assert "samples/s" in capsys.readouterr().out
    assert main(["bench", "--batch", "0"]) == 2
    assert "batch and rounds must be at least 1" in capsys.readouterr().err
