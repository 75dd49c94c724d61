"""A run's page in a real browser: whole, offline, in the reader's theme, on a narrow window."""

import os
from pathlib import Path

import pytest

from cdrl_fast.cli import main

TRAIN = [
    "train", "--recipe", "digits", "--iterations", "3", "--batch-size", "8", "--steps", "2",
    "--energy-width", "8", "--energy-blocks", "1", "--initializer-width", "8", "--log-every", "1",
    "--metrics-every", "0", "--preview-every", "0",
]  # fmt: skip
# What a reader would see broken: pictures that did not load, text wider than the window.
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a short run, and that of the shipped model's evaluation."""
    place = tmp_path_factory.mktemp("pages")
    assert main([*TRAIN, "--out", str(place / "run")]) == 0
    evaluated = ["evaluate", "--samples", "100", "--page", str(place / "evaluation.html")]
    assert main([*evaluated, "--guidance", "1", "--steps", "5"]) == 0
    return {"run": place / "run" / "report.html", "evaluation": place / "evaluation.html"}


@pytest.fixture
def opened(browser):
    """Opens a file, and fails if the page asked for anything or complained."""
    contexts, troubles = [], []

    def opened(path, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or troubles.append(r.url))
        page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not troubles


@pytest.mark.parametrize("name", ["run", "evaluation"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_is_whole_in_any_window(pages, opened, name, width):
    page = opened(pages[name], viewport={"width": width, "height": 800})
    assert page.evaluate("document.images.length") >= 3
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(WIDER) <= 0


def test_it_says_what_the_run_was(pages, opened):
    page = opened(pages["run"])
    headings = page.locator("h2").all_inner_texts()
    for title in ("Samples", "From noise to sample", "Training", "Configuration", "Versions"):
        assert title in headings
    assert page.get_by_role("cell", name="training.batch_size").count() == 1
    assert page.locator("figcaption", has_text="Energy loss").count() == 1


def test_it_says_what_was_measured(pages, opened):
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
