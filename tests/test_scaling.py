"""The cost model's arithmetic against known answers, and the page that shows its tables."""

from dataclasses import replace
from pathlib import Path

import cost_model as model
import pytest
import scaling as script
from cdrl_fast.recipe import ModelOptions, load_recipe

ROOT = Path(__file__).resolve().parents[1]

IDEAL = model.Machine(peak=1e12, efficiency=1.0, processors=1, tiles=(1,), kernel_seconds=0.0)


@pytest.fixture(scope="module")
def paper():
    return model.count(ModelOptions(), 32)


def test_the_papers_costs(paper):
    assert paper.sample() == pytest.approx(2.05e12, rel=0.01)
    published = {15: 2.05, 8: 1.11, 5: 0.71, 3: 0.44}
    for steps, tera in published.items():
        assert paper.sample(steps) / 1e12 == pytest.approx(tera, rel=0.02)
    assert paper.training == pytest.approx(410e9, rel=0.01)
    assert 256 * paper.training == pytest.approx(105e12, rel=0.01)
    assert paper.steps * paper.gradient / paper.training == pytest.approx(0.82, abs=0.005)
    assert paper.gradient == pytest.approx(22.4e9, rel=0.005)
    assert paper.proposal == pytest.approx(2.3e9, rel=0.02)
    assert (paper.energy_parameters, paper.initializer_parameters) == (34_833_152, 3_769_795)
    assert paper.exchanged == 4 * 38_602_947
    assert paper.state == 5 * paper.exchanged


@pytest.mark.slow
def test_width_and_size_scale_as_they_should():
    flat = ModelOptions(energy_blocks=1, initializer_blocks=1)
    deeper = replace(flat, energy_multipliers=(1, 2, 2, 2, 2), initializer_multipliers=(1, 1, 1, 1))
    one, wide = model.count(flat, 32), model.count(replace(flat, energy_width=256), 32)
    large = model.count(deeper, 64)
    assert wide.gradient == pytest.approx(4 * one.gradient, rel=0.02)
    assert wide.energy_parameters == pytest.approx(4 * one.energy_parameters, rel=0.02)
    # Four times the pixels, and what the smallest resolution adds.
    assert large.gradient == pytest.approx(4 * one.gradient, rel=0.05)
    assert wide.kept == pytest.approx(2 * one.kept, rel=0.01)
    assert large.chain == pytest.approx(4 * one.chain, rel=0.01)


def test_convolutions_are_the_flop(paper):
    forward = sum(c.flop for c in paper.energy)
    assert 2 * forward == pytest.approx(paper.gradient, rel=1e-3)
    assert 3 * forward == pytest.approx(paper.phase, rel=1e-3)
    # The rest of the initializer's is attention and the embedding's maps.
    assert 0.9 < sum(c.flop for c in paper.initializer) / paper.proposal < 1


def test_what_autograd_keeps_of_a_small_network():
    """Counted by hand: of each block h, its activation, the sum, its activation, conv2's output."""
    options = ModelOptions(
        energy_width=32, energy_multipliers=(1, 1), energy_blocks=2, initializer_width=8,
        initializer_multipliers=(1,), initializer_blocks=1, conditional=False,
    )  # fmt: skip
    cost = model.count(options, 8)
    maps = 2 * 32 * 8 * 8, 2 * 32 * 4 * 4  # bytes of a feature map in bfloat16
    inside = 5 * 2 * (maps[0] + maps[1])
    # The stem keeps the image; pooling its input; the head its input's ReLU; and embeddings.
    outside = 2 * 3 * 8 * 8 + maps[0] + maps[1]
    embeddings = cost.kept - inside - outside
    assert 0 < embeddings < 5000
    blocks = 2 * (maps[0] + maps[1]) + 4 * maps[0]
    assert blocks < cost.kept_by_blocks < blocks + 500
    # Two buffers a resolution, and a bit for each of two activations a block.
    assert cost.chain == (2 + 2 * 2 / 16) * (maps[0] + maps[1])


def test_an_ideal_machine_takes_the_flop(paper):
    # Linear maps and attention have no time of their own.
    seconds = paper.training_seconds(3, IDEAL)
    assert seconds == pytest.approx(3 * paper.training / 1e12, rel=2e-3)
    assert paper.sample_seconds(2, IDEAL) == pytest.approx(2 * paper.sample() / 1e12, rel=2e-3)


def test_products_in_rounds_of_tiles():
    machine = model.Machine(peak=4e9, efficiency=0.5, processors=4, tiles=(8,), kernel_seconds=1e-9)
    a_tile = 2 * 8 * 8 * 16 / (2e9 / 4)
    for rows, rounds in ((8, 1), (32, 1), (33, 2), (64, 2)):
        assert machine.product_seconds(rows, 8, 16) == pytest.approx(rounds * a_tile)
    assert machine.product_seconds(32, 9, 16) == pytest.approx(2 * a_tile)
    assert machine.product_seconds(8, 4, 16) == pytest.approx(a_tile / 2)
    assert replace(machine, kernel_seconds=1.0).product_seconds(8, 8, 16) == 1.0
    # A tile of half the side has half the rate: a quarter of the work in half the time.
    smaller = replace(machine, tiles=(8, 4))
    assert smaller.product_seconds(8, 8, 16) == pytest.approx(a_tile / 2)
    assert smaller.product_seconds(32, 8, 16) == pytest.approx(a_tile)


def test_exchange():
    machine = model.Machine(hop_seconds=0.0)
    assert machine.exchange_seconds(1, 154e6, 1e9) == 0
    assert machine.exchange_seconds(2, 154e6, 1e9) == pytest.approx(0.154)
    assert machine.exchange_seconds(1024, 154e6, 1e9) == pytest.approx(2 * 0.154, rel=1e-3)
    delayed = replace(machine, hop_seconds=1.0).exchange_seconds(64, 0.0, 1e9)
    assert delayed == pytest.approx(12.0)


def test_more_gpus_are_faster_and_less_efficient(paper):
    machine = model.Machine()
    times = [paper.training_seconds(n, machine) for n in (256, 64, 32, 4, 1)]
    assert times == sorted(times, reverse=True)
    shares = [256 / n * t / times[0] for n, t in zip((256, 64, 32, 4, 1), times, strict=True)]
    assert all(share >= 0.999 for share in shares)
    # No faster than kernels one after the other: 17 gradients of 66 convolutions, there and back.
    assert times[-1] > 17 * 2 * len(paper.energy) * machine.kernel_seconds
    assert len(paper.energy) == 1 + 2 * 32 + 1


def test_numbers_and_durations():
    assert [script.number(x) for x in (1444.2, 105.3, 22.37, 0.707)] == [
        "1,444", "105", "22.4", "0.707",
    ]  # fmt: skip
    shown = [script.duration(x) for x in (3e5, 9e3, 150, 1.5, 0.0412)]
    assert shown == ["3.47 days", "2.5 h", "2.5 min", "1.5 s", "41.2 ms"]


def test_cpu_times_are_of_the_newest_line_that_has_them(paper):
    row = script.Model("the paper's", load_recipe("cifar10"), 32, paper)

    def line(median, group=script.CPU_GROUP):
        row = {
            "group": group, "contender": script.CPU_CONTENDER, "device": "cpu", "median": median,
            "gradients": 8,
        }  # fmt: skip
        return {
            "processor": "a CPU", "threads": 2, "date": "2030-01-02T03", "commit": "abcdefghij",
            "rows": [row],
        }  # fmt: skip

    shown = script.cpu_table(row, [line(8.0), line(0.8), line(0.1, "another")])
    assert "a CPU, 2 threads; 2030-01-02, commit abcdefg" in shown
    assert "| gradients a second, measured | 10 |" in shown
    assert f"| one sample, its gradients alone | {script.number(9.1)} s |" in shown
    days = 400_000 * 256 * 15 / 10 / 86400
    assert f"{days:,.0f} days |" in shown
    assert script.cpu_table(row, []) == "Not measured yet."


@pytest.mark.slow
def test_the_page_shows_the_tables():
    """Of the default assumptions; its CPU times may be of earlier results."""
    found = script.models()
    page, results = script.PAGE.read_text(), script.lines(script.RESULTS)
    others = script.tables(model.Machine(), [], found)
    cpu = [script.cpu_table(found[0], results[:n]) for n in range(1, len(results) + 1)]
    assert any(script.inserted(page, others | {"cpu": shown}) == page for shown in cpu)
    assert page.count("<!-- table: ") == len(others)
