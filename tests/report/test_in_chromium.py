"""A run's page in Chromium: complete, offline, in the reader's theme, in narrow windows."""

import os
from pathlib import Path

import pytest

from cdrl_fast.cli.main import main

TRAIN = [
    "train", "--recipe", "digits", "--iterations", "3", "--batch-size", "8", "--steps", "2",
    "--energy-width", "8", "--energy-blocks", "1", "--initializer-width", "8", "--log-every", "1",
    "--metrics-every", "0", "--preview-every", "0",
]  # fmt: skip
# Pictures that did not load, and the width of text beyond the window.
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a short run, and the page of the shipped model's evaluation."""
    folder = tmp_path_factory.mktemp("pages")
    assert main([*TRAIN, "--out", str(folder / "run")]) == 0
    evaluate = ["evaluate", "--samples", "100", "--page", str(folder / "evaluation.html")]
    assert main([*evaluate, "--guidance", "1", "--steps", "5"]) == 0
    return {"run": folder / "run" / "report.html", "evaluation": folder / "evaluation.html"}


@pytest.fixture
def opened(browser):
    """A function that opens a file; the test fails on a network request or an error."""
    contexts, problems = [], []

    def opened(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("name", ["run", "evaluation"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_is_complete_in_any_window(pages, opened, name, width):
    page = opened(pages[name], viewport={"width": width, "height": 800})
    assert page.evaluate("document.images.length") >= 3
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(WIDER) <= 0


def test_it_shows_the_run(pages, opened):
    page = opened(pages["run"])
    headings = page.locator("h2").all_inner_texts()
    for title in ("Samples", "From noise to sample", "Training", "Configuration", "Versions"):
        assert title in headings
    assert page.get_by_role("cell", name="training.batch_size").count() == 1
    assert page.locator("figcaption", has_text="Energy loss").count() == 1


def test_it_shows_the_figures(pages, opened):
    page = opened(pages["evaluation"])
    row = page.get_by_role("row").filter(has_text="accuracy_w1")
    assert float(row.get_by_role("cell").last.inner_text()) > 0.9
    folder = os.environ.get("CDRL_FAST_SCREENSHOTS")
    page.set_viewport_size({"width": 1100, "height": 1000})
    path = Path(folder or pages["evaluation"].parent) / "report.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000


def test_it_follows_the_readers_theme(pages, opened):
    grounds = {opened(pages["run"], color_scheme=c).evaluate(GROUND) for c in ("light", "dark")}
    assert len(grounds) == 2
