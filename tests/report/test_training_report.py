"""The assembled page: curves from complete and truncated logs, chains, tables, refused input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl_fast.errors import DataError
from cdrl_fast.report import film_strip, image_grid, scatter_figure, training_report
from cdrl_fast.report.training import read_log
from tests.report.page_reader import Page, opened, rising

LOG: list[dict[str, object]] = [
    {"iteration": 10, "seconds": 30.0, "energy_loss": 2.0, "energy_gap": -0.5},
    {"iteration": 10, "seconds": 31.0, "metrics": {"FID": 40.0}},
    {"iteration": 20, "seconds": 95.0, "energy_loss": None, "energy_gap": 0.25},
    {"note": "a line without an iteration"},
    {"iteration": 30, "seconds": 125.0, "energy_loss": 1.5, "energy_gap": float("nan")},
    {"iteration": 30, "energy_grad_norm": 0.5, "initializer_grad_norm": 3.0},
    {"iteration": 30, "seconds": 126.0, "metrics": {"FID": 12.5, "accuracy": 0.75}},
]


def write_log(folder: Path, rows: list[dict[str, object]], tail: str = "") -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "log.jsonl").write_text(lines + tail)
    return folder


def curve_captions(folder: Path) -> list[str]:
    page = Page(training_report(folder, samples=rising(4)).html())
    return page.text("figcaption")[1:]


@pytest.mark.parametrize("tail", ["", '{"iteration": 40, "ener', "{", '{"iteration": "caf\u00e9'])
def test_curves_come_from_a_log_that_may_be_truncated(tmp_path: Path, tail: str) -> None:
    assert curve_captions(write_log(tmp_path, LOG, tail)) == [
        "Energy loss: 1.5 at iteration 30.",
        "Energy gap: 0.25 at iteration 20.",
        "Gradient norm of the energy: 0.5 at iteration 30.",
        "Gradient norm of the initializer: 3 at iteration 30.",
        "FID: 12.5 at iteration 30.",
        "accuracy: 0.75 at iteration 30.",
    ]


def test_log_truncated_within_a_character(tmp_path: Path) -> None:
    write_log(tmp_path, LOG[:1])
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write('{"iteration": 40, "name": "é'.encode()[:-1])
    assert len(curve_captions(tmp_path)) == 2


def test_log_of_a_resumed_run_counts_the_later_lines(tmp_path: Path) -> None:
    iterations = [*range(300), *range(51, 100)]
    rows: list[dict[str, object]] = [{"iteration": i, "energy_loss": i / 4} for i in iterations]
    # 100 entries remain; with more than 200, the caption would say how many make one point.
    assert curve_captions(write_log(tmp_path, rows)) == ["Energy loss: 24.75 at iteration 99."]


def test_keys_of_version_0_1_get_their_present_names(tmp_path: Path) -> None:
    """A run that was started with version 0.1 and continued has one curve per figure."""
    rows: list[dict[str, object]] = [
        {"iteration": 1, "share_of_floor": 0.25, "metrics": {"frechet": 3.0, "frechet_floor": 2.0}},
        {"iteration": 2, "share_of_roofline": 0.5, "metrics": {"frechet_held_out": 1.5}},
    ]
    assert curve_captions(write_log(tmp_path, rows)) == [
        "frechet: 3 at iteration 1.",
        "frechet_held_out: 1.5 at iteration 2.",
    ]
    first, _ = read_log(tmp_path / "log.jsonl")
    assert first == {
        "iteration": 1,
        "share_of_roofline": 0.25,
        "metrics": {"frechet": 3.0, "frechet_held_out": 2.0},
    }


def test_long_log_is_drawn_as_means_and_range(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"iteration": i, "initializer_loss": float(i % 2)} for i in range(1000)
    ]
    assert curve_captions(write_log(tmp_path, rows)) == [
        "Initializer loss: 1 at iteration 999. Mean and range of every 5 log entries."
    ]


def test_damaged_or_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.jsonl: no training log"):
        training_report(tmp_path, samples=rising(4))
    (tmp_path / "log.jsonl").write_text('{"iteration": 1}\n{"iter\n{"iteration": 2}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: expected a JSON object"):
        training_report(tmp_path, samples=rising(4))


def test_empty_log_gives_no_curves(tmp_path: Path) -> None:
    assert curve_captions(write_log(tmp_path, [])) == []


def test_page_of_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(200, 1, 8, 8, generator=generator) * 2 - 1
    states = [torch.randn(60, 1, 8, 8, generator=generator) for _ in range(3)]
    report = training_report(
        write_log(tmp_path, LOG),
        samples=samples,
        trace_states=states,
        metrics={"FID": 12.3456},
        timings={"training": 3725.0, "sampling": 0.25, "step": 4.2e-5, "on": "CPU"},
        config={"model": {"levels": 2, "rate": 0.123456789}, "data": "<b>&"},
        title="Digits",
    )
    page = Page(report.html())
    assert page.text("h2") == [
        "Samples",
        "From noise to sample",
        "Training",
        "Quality during training",
        "Metrics",
        "Timings",
        "Configuration",
        "Versions",
    ]
    assert page.text("p") == ["30 iterations in 2 min 06 s."]
    grid, strip, film = (opened(content) for content in page.images()[:3])
    assert grid.tobytes() == image_grid(samples[:108], columns=18).tobytes()
    labels = ["t = 2", "t = 1", "t = 0"]
    assert strip.tobytes() == film_strip([s[:6] for s in states], labels=labels).tobytes()
    assert film.n_frames == 3  # type: ignore[attr-defined]
    film.seek(2)
    assert film.tobytes() == image_grid(states[2][:54], columns=9).tobytes()
    cells = page.text("td")
    pairs = dict(zip(cells[::2], cells[1::2], strict=True))
    expected = {
        "FID": "12.35",
        "training": "1 h 02 min",
        "sampling": "250 ms",
        "step": "42 µs",
        "on": "CPU",
        "model.levels": "2",
        "model.rate": "0.123456789",
        "data": "<b>&",
        "PyTorch": torch.__version__,
    }
    assert {name: pairs[name] for name in expected} == expected


def test_page_of_points(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(500, 2, generator=generator) * 0.2
    states = [torch.randn(300, 2, generator=generator) * scale for scale in (1.0, 0.5, 0.2)]
    report = training_report(
        write_log(tmp_path, LOG), samples=samples, trace_states=states, config={"seed": 0}
    )
    page = Page(report.html())
    assert page.text("h2")[:2] == ["Samples", "Training"]
    assert page.text("figcaption")[:3] == [
        "All 500 samples.",
        "300 chains, from noise to samples.",
        "From noise to samples; some of the noise lies outside the frames.",
    ]
    scatter, film, row, *_ = page.images()
    assert scatter.lstrip().startswith(b"<?xml")
    assert row.lstrip().startswith(b"<?xml")
    frames = opened(film)
    assert (frames.n_frames, frames.size) == (3, (450, 450))  # type: ignore[attr-defined]
    spreads = []
    for index in range(3):
        frames.seek(index)
        spreads.append(float(np.nonzero(np.asarray(frames)[..., 3])[0].std()))
    assert spreads[0] > spreads[1] > 2 * spreads[2] > 0


def test_animated_points_have_x_to_the_right_and_y_upwards() -> None:
    state = torch.tensor([[0.9, 0.9], [1.0, -1.0], [-1.0, -1.0]])
    page = Page(training_report(None, samples=state, trace_states=[state]).html())
    alpha = np.asarray(opened(page.images()[1]))[::3, ::3, 3]
    rows, columns = np.nonzero(alpha)
    quadrants = {(int(x > 75), int(y < 75)) for y, x in zip(rows, columns, strict=True)}
    assert quadrants == {(1, 1), (1, 0), (0, 0)}


def test_tables_of_rows_are_unchanged() -> None:
    rows = [{"path": "plain", "step": 48.2}, {"path": "fused", "step": 19.6}]
    page = Page(training_report(None, samples=rising(4), metrics=rows, timings=rows).html())
    assert page.text("th")[:4] == ["path", "step", "path", "step"]
    assert page.text("td")[:4] == ["plain", "48.2", "fused", "19.6"]


def test_long_chain_is_thinned_between_its_ends() -> None:
    states = [torch.full((2, 1, 48, 48), i / 50 - 1) for i in range(101)]
    names = [f"#{i}" for i in range(101)]
    page = Page(
        training_report(None, samples=states[-1], trace_states=states, trace_labels=names).html()
    )
    _, strip, film = (opened(content) for content in page.images())
    assert strip.width == 18 * 50 - 2
    assert strip.getpixel((0, 20)) == (0, 0, 0)
    assert strip.getpixel((strip.width - 1, 20)) == (255, 255, 255)
    assert film.n_frames == 48  # type: ignore[attr-defined]


def test_training_report_refuses_wrong_shapes_and_labels() -> None:
    with pytest.raises(ValueError, match="trace_labels: expected 1, got 2"):
        training_report(None, samples=rising(4), trace_states=[rising(4)], trace_labels=["a", "b"])
    with pytest.raises(ValueError, match="samples: expected shape"):
        training_report(None, samples=torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="points: NaN"):
        training_report(None, samples=torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match=r"trace_states\[0\]: expected shape"):
        training_report(None, samples=torch.zeros(3, 2), trace_states=[torch.zeros(3, 3)])


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "cdrl-fast\[demo\]"'):
        scatter_figure([[0.0, 1.0]], "")
    page = training_report(None, samples=rising(4), trace_states=[rising(4)], metrics={"FID": 1.0})
    assert "FID" in Page(page.html()).text("td")
