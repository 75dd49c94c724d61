"""The page of `cdrl-fast app`: its handlers, the command, and the page in a browser."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl_fast import CDRL, NoiseSchedule, ResNetEnergy
from cdrl_fast.app.playground import CELL
from cdrl_fast.cli.main import main

WAIT = 60_000  # milliseconds


@pytest.fixture
def handlers(image_model):
    """The functions that the page's controls call, by name."""
    pytest.importorskip("gradio", reason="there is no gradio")
    from cdrl_fast.app.page import build_app

    page = build_app(image_model)
    assert not page.analytics_enabled
    return {f.fn.__name__: f.fn for f in page.fns.values()}


def test_handlers_return_the_pages_pictures(handlers):
    film, caption, samples, done = handlers["_draw_samples"](1, 1.0, 2, 4, 0)
    assert (caption, done) == ("x_0, the samples", 6)
    caption, noise = handlers["_show_level"](film, 0)
    assert caption == "x_6, noise"
    assert noise.size == samples.size == (2 * CELL + 2, 2 * CELL + 2)
    assert noise.tobytes() != samples.tobytes()
    image, index, canvas = handlers["_draw_image"](1, 0, 3)
    assert index == 4
    assert handlers["_restore_image"](image).tobytes() == canvas.tobytes()
    assert handlers["_restore_image"](None) is None
    paint = Image.new("RGBA", canvas.size, (224, 123, 57, 255))
    editor = {"background": canvas, "layers": [paint], "composite": paint}
    completions = handlers["_complete_image"](image, editor, 3, 1, 1, 0)
    assert completions.size == (2 * CELL + 2, 2 * CELL + 2)
    compose = handlers["_draw_composition"]
    combined = [compose(1, 2, kind, 0.5, 0.5, 1, 4, 0) for kind in ("both", "either")]
    assert combined[0].tobytes() != combined[1].tobytes()
    description, figure, model_input = handlers["_score_image"](editor)
    assert "Percentile" in description
    assert figure.axes
    assert model_input.size == (CELL, CELL)


def test_sliders_of_weights_are_visible_where_they_apply(handlers):
    def shown(kind):
        return [update["visible"] for update in handlers["_show_weights"](kind)]

    assert shown("both") == [False, False]
    assert shown("either") == [False, True]
    assert shown("first, not second") == [True, False]
    assert [handlers["_show_guidance"](label)["visible"] for label in (0, 1)] == [False, True]


def test_a_model_without_classes_has_a_page():
    pytest.importorskip("gradio", reason="there is no gradio")
    from cdrl_fast.app.page import build_app

    energy = ResNetEnergy(3, 8, (1, 2), 1)
    model = CDRL(energy, None, NoiseSchedule(steps=1), sample_shape=(3, 8, 8))
    page = build_app(model)
    handlers = {f.fn.__name__: f.fn for f in page.fns.values()}
    assert "_draw_composition" not in handlers
    assert handlers["_draw_samples"](0, 0.0, 1, 1, 0)[2].size == (CELL, CELL)


def test_errors_are_shown_on_the_page(handlers, image_model, tmp_path):
    from gradio import Error

    with pytest.raises(Error, match="kind: expected one of"):
        handlers["_draw_composition"](1, 2, "neither", 0.5, 0.5, 1, 4, 0)
    with pytest.raises(Error, match="seed"):
        handlers["_draw_samples"](1, 1.0, 2, 4, None)
    with pytest.raises(Error, match="chain: draw samples first"):
        handlers["_show_level"](None, 3)
    with pytest.raises(Error, match="image: draw a sample or upload"):
        handlers["_complete_image"](None, None, 3, 1, 1, 0)
    with pytest.raises(Error, match="image: draw or upload one"):
        handlers["_score_image"](None)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Error, match=r"text\.png: cannot be read"):
        handlers["_load_image"](str(tmp_path / "text.png"))
    with torch.no_grad():
        next(image_model.energy.parameters()).fill_(float("nan"))
    with pytest.raises(Error, match="level"):
        handlers["_draw_samples"](1, 0.0, 2, 4, 0)


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "this needs gradio (" in (error := capsys.readouterr().err)
    assert 'pip install "cdrl-fast[app]"' in error


def test_the_command_refuses_points_and_ports(point_model, tmp_path, capsys):
    pytest.importorskip("gradio", reason="there is no gradio")
    point_model.save_pretrained(tmp_path / "points")
    assert main(["app", "--model", str(tmp_path / "points")]) == 2
    assert "model: expected a model of grey or colour images" in capsys.readouterr().err
    assert main(["app", "--port", "70000"]) == 2
    assert "port: expected 1 to 65535, got 70000" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert f"cannot listen on {port}" in capsys.readouterr().err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(browser):
    """The address at which the command serves the page; Ctrl-C ends it."""
    pytest.importorskip("gradio", reason="there is no gradio")
    port = free_port()
    command = [sys.executable, "-m", "cdrl_fast", "app", "--port", str(port)]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # In a shell's background job child processes would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            assert server.poll() is None, server.stdout.read()
            time.sleep(0.2)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        output = server.communicate(timeout=120)[0]
    assert server.returncode == 0, output
    # Tracebacks of the server itself occur when the browser cancels a download.
    assert "/cdrl_fast/app/" not in output


@pytest.fixture
def page(browser, address):
    """The page, which requests nothing from other hosts."""
    requests = []
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: requests.append(urlsplit(request.url)))
    page.goto(address)
    page.get_by_role("button", name="Sample", exact=True).wait_for()
    yield page
    page.close()
    assert len(requests) > 5
    remote = [url for url in requests if url.scheme not in ("blob", "data")]
    assert {url.hostname for url in remote} == {"127.0.0.1"}


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def choose(page, label, value):
    page.get_by_label(label, exact=True).locator("visible=true").click()
    option = page.get_by_role("option", name=value, exact=True)
    option.click()
    option.wait_for(state="detached")  # the list fades out


def picture(page, before=None):
    """Return the source and pixels of the tab's last picture, once it differs from ``before``."""
    shown = page.locator(".crisp img:visible").last
    shown.wait_for()
    for _ in range(WAIT // 100):
        source = shown.get_attribute("src")
        if source != before:
            body = page.request.get(source).body()
            return source, np.asarray(Image.open(io.BytesIO(body)).convert("L"))
        page.wait_for_timeout(100)
    raise AssertionError(f"still {before}")


def arrival(page):
    """Wait for a picture on its way to a canvas."""
    return page.expect_response(lambda response: "/file=" in response.url)


def paint(page, *points):
    """Draw a line through points, given as shares of the canvas from its middle."""
    canvas = page.locator("canvas:visible").first
    canvas.wait_for()
    page.wait_for_timeout(1500)  # nothing in the page tells when the canvas shows its picture
    box = canvas.bounding_box()
    for index, (x, y) in enumerate(points):
        side = 256
        at = (box["x"] + box["width"] / 2 + x * side, box["y"] + box["height"] / 2 + y * side)
        page.mouse.move(*at, steps=3)
        if index == 0:
            page.mouse.down()
    page.mouse.up()


def cells(pixels):
    """Return the 8×8 images of a 2×2 grid."""
    corners = [(0, 0), (0, CELL + 2), (CELL + 2, 0), (CELL + 2, CELL + 2)]
    step = CELL // 8
    return [pixels[y : y + CELL : step, x : x + CELL : step] for y, x in corners]


def save_screenshot(page, folder):
    page.screenshot(path=folder / "app.png")
    if screenshots := os.environ.get("CDRL_FAST_SCREENSHOTS"):
        page.screenshot(path=Path(screenshots) / "app.png")


def test_draws_samples_and_shows_their_chain(page, tmp_path):
    choose(page, "Class", "3")
    press(page, "Sample")
    source, samples = picture(page)
    page.get_by_text("x_0, the samples").wait_for()
    assert samples.shape == (4 * CELL + 6, 4 * CELL + 6)
    save_screenshot(page, tmp_path)
    assert Image.open(tmp_path / "app.png").width == 1280
    level = page.get_by_role("slider", name="Watch the chain: levels done")
    level.press("Home")
    page.get_by_text("x_6, noise").wait_for()
    source, noise = picture(page, before=source)
    level.press("End")
    source, again = picture(page, before=source)
    np.testing.assert_array_equal(again, samples)
    # Most pixels of a digit are black; those of noise are where it is below -1.
    assert (samples < 20).mean() > 0.3 > (noise < 20).mean()
    page.get_by_label("number input for Samples").locator("visible=true").fill("4")
    press(page, "Sample")
    assert picture(page, before=source)[1].shape == (2 * CELL + 2, 2 * CELL + 2)


@pytest.mark.slow
def test_completes_the_painted_part(page):
    open_tab(page, "Complete")
    press(page, "Complete")
    page.get_by_text("image: draw a sample or upload an image first").wait_for()
    with arrival(page):
        press(page, "Draw a sample")
    paint(page, (0.0, -0.4), (0.0, 0.4))
    with arrival(page):
        press(page, "Draw a sample")  # removes the paint
    paint(page, (-0.5, 0.25), (0.5, 0.25), (0.5, 0.4), (-0.5, 0.4))
    page.get_by_label("number input for Completions").fill("3")
    page.get_by_label("number input for Passes").fill("1")
    press(page, "Complete")
    known, *completions = cells(picture(page)[1])
    hidden = known == 128
    assert hidden[5:7].all()
    assert not hidden[:4].any()
    for cell in completions:
        np.testing.assert_array_equal(cell[~hidden], known[~hidden])
        assert (cell[hidden] != 128).mean() > 0.5
    assert (completions[0] != completions[1]).any()


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        press(page, "Upload an image")
    with arrival(page):
        chooser.value.set_files(path)


def clear(page):
    page.get_by_role("button", name="Clear canvas").locator("visible=true").click()
    page.wait_for_timeout(3000)


@pytest.mark.slow
def test_takes_uploaded_images(page, tmp_path):
    shades = np.arange(64, dtype=np.uint8).reshape(8, 8) * 2
    Image.fromarray(shades).save(tmp_path / "shades.png")
    open_tab(page, "Score")
    page.locator("canvas:visible").first.wait_for()
    upload(page, tmp_path / "shades.png")
    seen = None
    for _ in range(10):  # the canvas does not say when it has the upload
        page.wait_for_timeout(1000)
        press(page, "Score")
        seen = picture(page)[1][:: CELL // 8, :: CELL // 8]
        if (seen == shades).all():
            break
    np.testing.assert_array_equal(seen, shades)
    open_tab(page, "Complete")
    upload(page, tmp_path / "shades.png")
    paint(page, (0.0, -0.4), (0.0, 0.4))
    clear(page)  # removes the paint, not the picture
    paint(page, (-0.5, 0.25), (0.5, 0.25))
    page.get_by_label("number input for Completions").fill("3")
    press(page, "Complete")
    known, *completions = cells(picture(page)[1])
    hidden = known == 128
    assert 8 <= hidden.sum() <= 24
    assert not hidden[:4].any()
    for cell in completions:
        np.testing.assert_array_equal(cell[~hidden], shades[~hidden])


@pytest.mark.slow
def test_composes_two_classes(page):
    open_tab(page, "Compose")
    choose(page, "First class", "1")
    choose(page, "Second class", "7")
    press(page, "Compose")
    source, both = picture(page)
    weight = page.get_by_label("number input for Weight of the negation")
    assert not weight.is_visible()
    page.get_by_label("first, not second").click()
    weight.wait_for()
    press(page, "Compose")
    source, negated = picture(page, before=source)
    assert both.shape == negated.shape
    assert (both != negated).any()


@pytest.mark.slow
def test_scores_a_drawing(page):
    open_tab(page, "Score")
    paint(page, (-0.15, -0.25), (0.15, -0.25), (0.0, 0.3))
    press(page, "Score")
    description = page.get_by_text("Percentile")
    description.wait_for()
    assert "of 200 samples of the model" in description.inner_text()
    source, seen = picture(page)
    seen = seen[:: CELL // 8, :: CELL // 8]
    assert seen[1:3, 2:6].max() > 200
    assert seen[:, [0, 7]].max() < 60
    plot = page.get_by_role("tabpanel").locator("visible=true").locator("img").first
    assert plot.is_visible()
    clear(page)  # to black
    press(page, "Score")
    assert not picture(page, before=source)[1].any()
