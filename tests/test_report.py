"""Pictures of samples and the HTML page: geometry, exact pixels, escaping, self-containment."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from PIL import Image

from cdrl_fast.errors import DataError
from cdrl_fast.report import (
    Report,
    curve_figure,
    density_figure,
    film_strip,
    image_grid,
    save_image_grid,
    scatter_figure,
    training_report,
)

GREY = (128, 128, 128)
EVIL = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"repeated attribute in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]

    def images(self) -> list[bytes]:
        """What each <img> holds; the source must be a data URI."""
        sources = [str(attributes["src"]) for attributes in self.all("img")]
        assert all(re.match(r"data:image/(png|svg\+xml);base64,", source) for source in sources)
        return [base64.b64decode(source.split(",", 1)[1], validate=True) for source in sources]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def write_log(folder: Path, rows: list[dict[str, object]], tail: str = "") -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "log.jsonl").write_text(lines + tail)
    return folder


def rising(count: int) -> torch.Tensor:
    """(count, 1, 2, 3) images, each of one value, from -1 to 1."""
    return torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 1, 2, 3)


# Grids


def test_grid_has_exact_corners_and_separators() -> None:
    images = torch.zeros(5, 3, 2, 4)
    images[0, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0])
    images[3, :, 1, 3] = torch.tensor([-1.0, 1.0, 0.5])
    grid = image_grid(images, columns=2, scale=3)
    assert grid.mode == "RGB"
    assert grid.size == (2 * 12 + 2, 3 * 6 + 2 * 2)
    pixels = np.asarray(grid)
    assert (pixels[:3, :3] == (255, 0, 128)).all()
    assert (pixels[3, 0] == GREY).all()
    assert (pixels[8 + 3 : 8 + 6, 14 + 9 : 14 + 12] == (0, 255, 191)).all()
    assert (pixels[6:8] == GREY).all()
    assert (pixels[:, 12:14] == GREY).all()


def test_grid_goes_row_by_row_and_fills_the_rest_with_grey() -> None:
    pixels = np.asarray(image_grid(rising(5), columns=3, scale=1))
    assert pixels.shape == (2 * 2 + 2, 3 * 3 + 4, 3)
    cells = [pixels[row * 4, column * 5, 0] for row in range(2) for column in range(3)]
    assert cells == [0, 64, 128, 191, 255, 128]
    assert (pixels[4:, 10:] == GREY).all()


def test_grid_clamps() -> None:
    far, edge = torch.tensor([-7.0, 9.0]), torch.tensor([-1.0, 1.0])
    grids = [
        image_grid(values[:, None, None, None].expand(2, 1, 4, 4), columns=2)
        for values in (far, edge)
    ]
    assert grids[0].tobytes() == grids[1].tobytes()
    assert set(np.unique(np.asarray(grids[0]))) == {0, 128, 255}


@pytest.mark.parametrize(("side", "cell"), [(1, 48), (8, 48), (28, 56), (32, 64), (96, 96)])
def test_default_cell_is_visible(side: int, cell: int) -> None:
    assert image_grid(torch.zeros(1, 1, side, side)).size == (cell, cell)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (5, 3), (10, 4)])
def test_default_grid_is_about_square(count: int, columns: int) -> None:
    width, _ = image_grid(torch.zeros(count, 1, 4, 4), scale=1).size
    assert width == columns * 4 + (columns - 1) * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_grid_takes_any_float_dtype_and_gradients(dtype: torch.dtype) -> None:
    exact = image_grid(torch.tensor([[[[-1.0, 0.5], [0.25, 1.0]]]]))
    images = torch.tensor([[[[-1.0, 0.5], [0.25, 1.0]]]], dtype=dtype, requires_grad=True)
    assert image_grid(images).tobytes() == exact.tobytes()


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8), (0, 1, 8, 8), (1, 1, 0, 8), (4, 2)]
)
def test_grid_refuses_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape("images: expected shape (n, 1 or 3, height")):
        image_grid(torch.zeros(shape))


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 8, 8, dtype=torch.uint8), np.zeros((1, 1))])
def test_grid_refuses_what_is_no_float_tensor(images: object) -> None:
    with pytest.raises(TypeError, match=r"images: expected a floating-point torch\.Tensor, got"):
        image_grid(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_grid_refuses_what_is_not_finite(bad: float) -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[2, 0, 3, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity in 1 images, first 2"):
        image_grid(images)


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"scale": 0}, {"columns": -1}])
def test_grid_refuses_sizes_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="columns >= 1 and scale >= 1"):
        image_grid(torch.zeros(2, 1, 8, 8), **wrong)


# Files


def test_saved_grid_reads_back(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = tmp_path / "new" / "grid.png"
    save_image_grid(images, path, columns=3, scale=2)
    with Image.open(path) as read:
        assert read.format == "PNG"
        assert read.tobytes() == image_grid(images, columns=3, scale=2).tobytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"]


def test_save_refuses_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix such as \.png, got 'grid\.xyz'"):
        save_image_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.xyz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "report.html"
    Report("old").write(path)
    before = path.read_bytes()

    def fail(self: Path, argument: object) -> None:
        if failing == "write_bytes":
            self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        Report("new").write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    for title in ("first", "second"):
        Report(title).write(path)
        assert Page(path.read_text(encoding="utf-8")).text("h1") == [title]
    assert len(list(path.parent.iterdir())) == 1


# Film strips


def test_film_strip_has_a_row_a_sample_and_a_column_a_state() -> None:
    states = [torch.full((3, 1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 5.0)]
    states[0][1] = 1.0
    strip = film_strip(states)
    assert strip.size == (4 * 50 - 2, 3 * 50 - 2)
    pixels = np.asarray(strip)[..., 0]
    assert [[pixels[50 * r, 50 * c] for c in range(4)] for r in range(3)] == [
        [0, 128, 255, 255],
        [255, 128, 255, 255],
        [0, 128, 255, 255],
    ]


def test_film_strip_labels_stand_above_their_columns() -> None:
    states = [torch.zeros(2, 3, 8, 8)] * 3
    plain, blank = film_strip(states), film_strip(states, labels=["", "", ""])
    named = film_strip(states, labels=["", "a label much wider than its column", ""])
    assert blank.size == (plain.width, plain.height + 18)
    assert named.crop((0, 18, *named.size)).tobytes() == plain.tobytes()
    changed = np.flatnonzero((np.asarray(named) != np.asarray(blank)).any(axis=(0, 2)))
    assert changed.size > 10
    assert changed.min() >= 50
    assert changed.max() < 98


def test_film_strip_refuses_what_does_not_fit() -> None:
    state = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="one or more tensors of one shape"):
        film_strip([])
    with pytest.raises(ValueError, match="one or more tensors of one shape"):
        film_strip([state, state[:1]])
    with pytest.raises(ValueError, match="labels: expected 2, got 1"):
        film_strip([state, state], labels=["a"])
    with pytest.raises(ValueError, match=r"states\[1\]: NaN"):
        film_strip([state, state * float("nan")])


# Figures


def test_scatter_holds_every_point() -> None:
    points = torch.tensor([[-3.0, 0.5], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    (axes,) = scatter_figure(points, "Spiral").axes
    assert axes.get_title() == "Spiral"
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), points.detach().numpy())
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-3.18, 3.18))
    assert scatter_figure(np.zeros((2, 2)), "").axes[0].get_xlim() == (-1, 1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (0, 2), (4, 2, 1)])
def test_scatter_refuses_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"points: expected shape \(n, 2\)"):
        scatter_figure(torch.zeros(shape), "")
    with pytest.raises(ValueError, match="points: NaN or infinity in 1 points"):
        scatter_figure([[0.0, 1.0], [float("nan"), float("inf")]], "")


def test_density_is_measured_from_its_maximum() -> None:
    grids: list[tuple[str, ArrayLike]] = [
        ("a", [[100.0, 95.0, 0.0], [-np.inf, 100.0, 99.0]]),
        ("b", np.zeros((2, 2))),
    ]
    figure = density_figure(grids, (-1.0, 1.0, -2.0, 2.0))
    first, second, _ = figure.axes
    assert (first.get_title(), second.get_title()) == ("a", "b")
    np.testing.assert_array_equal(
        first.images[0].get_array(), [[0.0, -5.0, -10.0], [-10.0, 0.0, -1.0]]
    )
    assert tuple(first.images[0].get_extent()) == (-1, 1, -2, 2)
    assert first.images[0].origin == "lower"


@pytest.mark.parametrize("values", [[1.0], np.full((2, 2), -np.inf), [[1.0, np.nan]], [[np.inf]]])
def test_density_refuses_what_it_cannot_draw(values: object) -> None:
    with pytest.raises(ValueError, match="'bad' must be 2-D with a finite maximum"):
        density_figure([("bad", values)], (0, 1, 0, 1))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="grids: expected one or more"):
        density_figure([], (0, 1, 0, 1))


def test_curves_keep_their_values_and_names() -> None:
    series: dict[str, tuple[list[float], list[float]]] = {
        "ours": ([1, 2, 3], [1.0, float("nan"), 100.0]),
        "plain": ([1, 2], [5, 6]),
    }
    (axes,) = curve_figure(series, xlabel="steps", ylabel="time", log_y=True).axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("steps", "time", "log")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, 100.0])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "plain"]
    (single,) = curve_figure({"one": ([0], [0])}, xlabel="", ylabel="").axes
    assert single.get_legend() is None
    assert single.get_yscale() == "linear"


def test_curves_refuse_what_does_not_pair_up() -> None:
    with pytest.raises(ValueError, match="'loss' has x of shape"):
        curve_figure({"loss": ([1, 2], [1])}, xlabel="", ylabel="")
    with pytest.raises(ValueError, match="one or more curves"):
        curve_figure({}, xlabel="", ylabel="")


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "cdrl-fast\[demo\]"'):
        scatter_figure([[0.0, 1.0]], "")
    page = training_report(None, samples=rising(4), trace_states=[rising(4)], metrics={"FID": 1.0})
    assert "FID" in Page(page.html()).text("td")


# The page


def full_report() -> Report:
    report = Report("Model", "of digits")
    report.text("First.\n\nSecond.")
    report.section("Pictures")
    report.image(image_grid(rising(4)), "grid")
    report.figure(scatter_figure([[0.0, 1.0]], "points"), "scatter", half=True)
    report.animation([image_grid(rising(4)), image_grid(-rising(4))], "film", 80)
    report.section("Numbers")
    report.table([{"name": "FID", "value": 6.2345678}, {"name": "n", "value": 500, "note": "b"}])
    return report


def test_page_is_well_formed_and_complete() -> None:
    html = full_report().html()
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert {"charset": "utf-8"} in page.all("meta")
    assert page.text("title") == page.text("h1") == ["Model"]
    assert page.text("h2") == ["Pictures", "Numbers"]
    assert page.text("p") == ["of digits", "First.", "Second."]
    assert page.text("figcaption") == ["grid", "scatter", "film"]
    assert [image["alt"] for image in page.all("img")] == ["grid", "scatter", "film"]
    assert len(page.all("section")) == 3
    (style,) = page.text("style")
    assert "prefers-color-scheme: dark" in style
    assert "image-rendering: pixelated" in style


def test_page_refers_to_nothing_outside() -> None:
    html = full_report().html()
    page = Page(html)
    links = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    found = [value for _, attrs in page.tags for name, value in attrs.items() if name in links]
    assert len(found) == 4
    assert all(str(value).startswith("data:image/") for value in found)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for reference in ("http://", "https://", "url(", "@import", "//"):
        assert all(reference not in text for text in page.text("style"))
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+|http-equiv", "", html)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_image_survives_exactly(mode: str) -> None:
    random = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(random).convert(mode)
    report = Report("x")
    report.image(image, "noise")
    page = Page(report.html())
    (content,) = page.images()
    assert opened(content).mode == mode
    assert opened(content).tobytes() == image.tobytes()
    (tag,) = page.all("img")
    assert (tag["width"], tag["height"], tag["class"]) == ("7", "9", "pixels")


def test_animation_keeps_every_frame_and_time() -> None:
    random = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 4), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in random]
    report = Report("x")
    report.animation(frames, "film", [40, 50, 60, 900])
    page = Page(report.html())
    film = opened(page.images()[0])
    assert (film.n_frames, film.info["loop"]) == (4, 0)  # type: ignore[attr-defined]
    for index, (frame, time) in enumerate(zip(frames, (40, 50, 60, 900), strict=True)):
        film.seek(index)
        assert film.convert("RGBA").tobytes() == frame.tobytes()
        assert film.info["duration"] == time
    (still,) = page.all("source")
    assert still["media"] == "(prefers-reduced-motion: reduce)"
    content = base64.b64decode(str(still["srcset"]).split(",", 1)[1])
    assert opened(content).tobytes() == frames[-1].tobytes()


def test_animation_refuses_what_does_not_fit() -> None:
    report, small = Report("x"), Image.new("RGB", (2, 2))
    with pytest.raises(ValueError, match="one or more pictures of one size"):
        report.animation([], "")
    with pytest.raises(ValueError, match="one or more pictures of one size"):
        report.animation([small, Image.new("RGB", (3, 2))], "")
    with pytest.raises(ValueError, match="milliseconds: expected 1, got 2"):
        report.animation([small], "", [1, 2])


def test_every_text_is_escaped() -> None:
    report = Report(EVIL, EVIL)
    report.section(EVIL)
    report.text(EVIL)
    report.image(Image.new("L", (2, 2)), EVIL)
    report.figure(scatter_figure([[0.0, 1.0]], EVIL), EVIL)
    report.animation([Image.new("L", (2, 2))], EVIL)
    report.table([{EVIL: EVIL}])
    page = Page(report.html())
    assert page.all("script") == []
    for tag in ("title", "h1", "h2", "th", "td"):
        assert page.text(tag) == [EVIL]
    assert page.text("p") == [EVIL, EVIL]
    assert page.text("figcaption") == [EVIL] * 3
    assert [image["alt"] for image in page.all("img")] == [EVIL] * 3


def test_own_figures_follow_the_theme_and_others_keep_their_colours() -> None:
    from matplotlib.figure import Figure

    own = curve_figure({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y")
    other = Figure(figsize=(2, 1), facecolor="#123456")
    other.subplots().plot([1, 2], color="#1f2328")
    report = Report("x")
    report.figure(own, "own")
    report.figure(other, "other")
    page = Page(report.html())
    first, second = (content.decode() for content in page.images())
    assert "currentColor" in first
    assert "prefers-color-scheme:dark" in first
    assert "#ffffff" not in first
    assert "currentColor" not in second
    assert "#123456" in second
    assert "#1f2328" in second
    assert (page.all("img")[1]["width"], page.all("img")[1]["height"]) == ("192", "96")


def test_table_shows_numbers_and_gaps() -> None:
    report = Report("x")
    report.table(
        [{"a": 6.2345678, "b": torch.tensor(3)}, {"a": np.float32(0.5), "c": True}, {"b": None}]
    )
    page = Page(report.html())
    assert page.text("th") == ["a", "b", "c"]
    assert page.text("td") == ["6.235", "3", "0.5", "True"]
    assert len(page.all("td")) == 9
    assert [th.get("class") for th in page.all("th")] == ["number", "number", None]


def test_table_takes_lists_with_a_header_and_a_choice_of_columns() -> None:
    report = Report("x")
    report.table([["a", 1], ["b", 2]], header=["name", "count"])
    report.table([{"x": 1, "y": 2}], header=["y"])
    page = Page(report.html())
    assert page.text("th") == ["name", "count", "y"]
    assert page.text("td") == ["a", "1", "b", "2", "2"]
    with pytest.raises(ValueError, match="need header"):
        report.table([["a", 1]])
    with pytest.raises(ValueError, match="expected 2 values in every row"):
        report.table([["a", 1], ["b"]], header=["name", "count"])


# The assembled page

LOG: list[dict[str, object]] = [
    {"iteration": 10, "seconds": 30.0, "energy_loss": 2.0, "energy_gap": -0.5},
    {"iteration": 10, "seconds": 31.0, "metrics": {"FID": 40.0}},
    {"iteration": 20, "seconds": 95.0, "energy_loss": None, "energy_gap": 0.25},
    {"note": "a line without an iteration"},
    {"iteration": 30, "seconds": 125.0, "energy_loss": 1.5, "energy_gap": float("nan")},
    {"iteration": 30, "seconds": 126.0, "metrics": {"FID": 12.5, "accuracy": 0.75}},
]


def curve_captions(folder: Path) -> list[str]:
    page = Page(training_report(folder, samples=rising(4)).html())
    return page.text("figcaption")[1:]


@pytest.mark.parametrize("tail", ["", '{"iteration": 40, "ener', "{", '{"iteration": "caf\u00e9'])
def test_curves_come_from_a_log_that_may_be_cut_off(tmp_path: Path, tail: str) -> None:
    assert curve_captions(write_log(tmp_path, LOG, tail)) == [
        "Energy loss: 1.5 at iteration 30.",
        "Energy gap: 0.25 at iteration 20.",
        "FID: 12.5 at iteration 30.",
        "accuracy: 0.75 at iteration 30.",
    ]


def test_log_cut_off_within_a_character(tmp_path: Path) -> None:
    write_log(tmp_path, LOG[:1])
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write('{"iteration": 40, "name": "é'.encode()[:-1])
    assert len(curve_captions(tmp_path)) == 2


def test_log_of_a_resumed_run_counts_the_later_lines(tmp_path: Path) -> None:
    iterations = [*range(300), *range(51, 100)]
    rows: list[dict[str, object]] = [{"iteration": i, "energy_loss": i / 4} for i in iterations]
    # 100 entries remain; of more than 200, the caption would tell how many make one point.
    assert curve_captions(write_log(tmp_path, rows)) == ["Energy loss: 24.75 at iteration 99."]


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
        config={"model": {"levels": 2, "rate": 0.123456789}, "data": EVIL},
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
        "data": EVIL,
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
        "300 chains at work, from noise to samples.",
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
    places = {(int(x > 75), int(y < 75)) for y, x in zip(rows, columns, strict=True)}
    assert places == {(1, 1), (1, 0), (0, 0)}


def test_tables_of_rows_stand_as_they_are() -> None:
    rows = [{"path": "plain", "step": 48.2}, {"path": "fused", "step": 19.6}]
    page = Page(training_report(None, samples=rising(4), metrics=rows, timings=rows).html())
    assert page.text("th")[:4] == ["path", "step", "path", "step"]
    assert page.text("td")[:4] == ["plain", "48.2", "fused", "19.6"]


def test_long_chain_is_thinned_with_its_ends_kept() -> None:
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


def test_training_report_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="trace_labels: expected 1, got 2"):
        training_report(None, samples=rising(4), trace_states=[rising(4)], trace_labels=["a", "b"])
    with pytest.raises(ValueError, match="samples: expected shape"):
        training_report(None, samples=torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="points: NaN"):
        training_report(None, samples=torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match=r"trace_states\[0\]: expected shape"):
        training_report(None, samples=torch.zeros(3, 2), trace_states=[torch.zeros(3, 3)])
