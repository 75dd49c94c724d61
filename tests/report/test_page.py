"""The HTML page: well formed, escaped, self-contained, with exact pictures, written atomically."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast.report import Report, curve_figure, image_grid, scatter_figure
from tests.report.page_reader import Page, opened, rising

EVIL = "<script>alert('x')</script> & \"quotes\""


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
    targets = [value for _, attrs in page.tags for name, value in attrs.items() if name in links]
    assert len(targets) == 4
    assert all(str(target).startswith("data:image/") for target in targets)
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


def test_animation_refuses_unequal_frames_and_times() -> None:
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
    with pytest.raises(ValueError, match="header: expected column names"):
        report.table([["a", 1]])
    with pytest.raises(ValueError, match="rows: expected 2 values in every row, got"):
        report.table([["a", 1], ["b"]], header=["name", "count"])


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "report.html"
    Report("old").write(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(failing, fail)
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
