"""``cdrl-fast app``: a page in the browser on which to try a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cdrl_fast._lazy import optional_module
from cdrl_fast.app.playground import BOTH, CANVAS, EITHER, KINDS, NOT, Film, Playground, grid
from cdrl_fast.cli.options import device_of
from cdrl_fast.errors import CDRLError
from cdrl_fast.model.cdrl import CDRL

if TYPE_CHECKING:
    import gradio

# The browser's enlargement must not smooth either.
CSS = ".crisp img { image-rendering: pixelated; }"
ANY = ("any", 0)
BRUSH = 18
QUICK = {"concurrency_limit": None, "show_progress": "hidden"}
FONTS = ["system-ui", "sans-serif"]


@dataclass(frozen=True)
class App:
    """Try a model in the browser: sample, complete, compose, score; Ctrl-C ends it."""

    model: str = "digits"
    """A shipped model, a folder (a run's too) or a Hub id."""
    port: int = 7860
    share: bool = False
    """Ask gradio for a public link, open to everyone who has it."""
    open: bool = False
    """Open the page in the browser at once."""
    device: str = "auto"

    def run(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        optional_module("gradio", "gradio", "app")
        page = build_app(CDRL.from_pretrained(self.model).to(device_of(self.device)))
        try:
            launch(page, port=self.port, share=self.share, inbrowser=self.open)
        finally:
            page.close(verbose=False)  # after Ctrl-C too; gradio's own end leaves its queue running


def build_app(model: CDRL) -> gradio.Blocks:
    """The page for a model of images; `launch` serves it.

    Raises:
        ImportError: gradio or matplotlib is not installed.
        ValueError: a model of points.
    """
    gr = optional_module("gradio", "gradio", "app")
    optional_module("matplotlib", "matplotlib", "app")
    playground = Playground(model)
    with gr.Blocks(title="cdrl-fast", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(_headline(model))
        tabs = _Tabs(gr, playground)
        with gr.Tab("Sample"):
            tabs.sample()
        with gr.Tab("Complete"):
            tabs.complete()
        with gr.Tab("Compose"):
            tabs.compose()
        with gr.Tab("Score"):
            tabs.score()
    return page


def launch(page: gradio.Blocks, *, port: int, **options: Any) -> Any:
    """Serves a page of `build_app` on this machine; ``options`` as gradio's ``launch`` takes them.

    Nothing is loaded from elsewhere: fonts are the system's.

    Raises:
        OSError: the port cannot be had.
    """
    gr = optional_module("gradio", "gradio", "app")
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    try:
        return page.launch(
            server_port=port, theme=theme, css=CSS, footer_links=[], ssr_mode=False, **options
        )
    except OSError as error:
        raise OSError(
            f"port: gradio cannot listen on {port}, which may be taken; pass another one"
        ) from error


def _headline(model: CDRL) -> str:
    channels, height, width = model.sample_shape
    what = "grey" if channels == 1 else "colour"
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"## An energy-based model of {what} images\n{height}×{width} pixels{classes}, "
        f"{parameters:,} parameters, {model.schedule.levels} noise levels"
    )


class _Tabs:
    """The tabs: their controls, and what these call."""

    def __init__(self, gr: Any, playground: Playground) -> None:
        self._gr, self._playground = gr, playground

    def sample(self) -> None:
        gr, schedule = self._gr, self._playground.model.schedule
        film = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                label = self._classes("Class")
                guided = bool(self._playground.classes)
                guidance = gr.Slider(
                    0, 4, 1.0 if guided else 0.0, step=0.1, label="Guidance weight", visible=guided
                )
                most = max(30, schedule.steps)
                steps = gr.Slider(1, most, schedule.steps, step=1, label="Steps a level")
                number = self._number("Samples", 16)
                seed = self._seed()
                button = gr.Button("Sample", variant="primary")
            with gr.Column(scale=3, min_width=320):
                caption = gr.Markdown("Samples will be here.")
                picture = self._picture(height=480)
                done = gr.Slider(
                    0,
                    schedule.levels,
                    schedule.levels,
                    step=1,
                    label="Watch the chain: levels done",
                    info=f"0 is noise, {schedule.levels} the samples; the same run throughout",
                    interactive=True,
                )
        self._on(
            button.click,
            self._sampled,
            [label, guidance, steps, number, seed],
            [film, caption, picture, done],
        )
        self._on(label.change, self._guides, [label], [guidance], quick=True)
        self._on(done.input, self._watched, [film, done], [caption, picture], quick=True)

    def _guides(self, label: int) -> Any:
        # There is nothing to guide towards without a class.
        return self._gr.update(visible=bool(label))

    def _sampled(self, *arguments: Any) -> tuple[Film, str, Any, int]:
        film = self._playground.sample(*arguments)
        return film, film.caption(film.levels), film.picture(film.levels), film.levels

    def _watched(self, film: Film | None, done: int) -> tuple[str, Any]:
        if film is None:
            raise ValueError("chain: draw samples first")
        return film.caption(done), film.picture(done)

    def complete(self) -> None:
        gr = self._gr
        image, index = gr.State(None), gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                label = self._classes("Class")
                seed = self._seed()
                with gr.Row():
                    draw = gr.Button("Draw a sample", size="sm")
                    upload = self._upload()
                gr.Markdown("Paint over what is to be filled:")
                editor = self._canvas("#e07b39", None)
            with gr.Column(scale=3, min_width=320):
                number = self._number("Completions", 8)
                passes = gr.Slider(1, 16, 4, step=1, label="Passes")
                button = gr.Button("Complete", variant="primary")
                gr.Markdown("First what is known, grey where it is not; then completions:")
                picture = self._picture(height=364)
        # A progress display over a canvas with paint on it stays there for good.
        inputs = [label, seed, index]
        self._on(draw.click, self._drawn, inputs, [image, index, editor], show_progress="hidden")
        self._on(upload.upload, self._uploaded, [upload], [image, editor], quick=True)
        self._on(editor.clear, self._restored, [image], [editor], quick=True)
        inputs = [image, editor, label, number, passes, seed]
        self._on(button.click, self._completed, inputs, [picture])

    def _drawn(self, label: int, seed: int, index: int) -> tuple[Tensor, int, Any]:
        image = self._playground.draw(label, seed, index)
        return image, index + 1, self._playground.canvas(image)

    def _uploaded(self, file: str) -> tuple[Tensor, Any]:
        image = self._playground.fitted(file)
        return image, self._playground.canvas(image)

    def _restored(self, image: Tensor | None) -> Any:
        # The canvas has been cleared of its picture, too.
        return None if image is None else self._playground.canvas(image)

    def _completed(self, image: Tensor | None, paint: Any, *arguments: Any) -> Any:
        known, found = self._playground.complete(image, (paint or {}).get("layers", ()), *arguments)
        return grid(torch.cat([known, found]))

    def compose(self) -> None:
        gr, classes = self._gr, self._playground.classes
        if not classes:
            gr.Markdown("This model knows no classes, so there is nothing to combine.")
            return
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                first = gr.Dropdown(classes, value=1, label="First class")
                second = gr.Dropdown(classes, value=len(classes), label="Second class")
                kind = gr.Radio(list(KINDS), value=BOTH, label="How")
                weight = gr.Slider(
                    0, 2, 0.5, step=0.1, label="Weight of the negation", visible=False
                )
                share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the first", visible=False)
                correctors = gr.Slider(0, 60, 15, step=1, label="Correctors a level")
                number = self._number("Samples", 16)
                seed = self._seed()
                button = gr.Button("Compose", variant="primary")
            with gr.Column(scale=3, min_width=320):
                picture = self._picture(height=480)
        self._on(kind.change, self._asked, [kind], [weight, share], quick=True)
        inputs = [first, second, kind, weight, share, correctors, number, seed]
        self._on(button.click, self._composed, inputs, [picture])

    def _asked(self, kind: str) -> tuple[Any, Any]:
        return self._gr.update(visible=kind == NOT), self._gr.update(visible=kind == EITHER)

    def _composed(
        self,
        first: int,
        second: int,
        kind: str,
        weight: float,
        share: float,
        correctors: int,
        n: int,
        seed: int,
    ) -> Any:
        return grid(
            self._playground.compose(
                first,
                second,
                kind,
                weight=weight,
                share=share,
                correctors=correctors,
                n=n,
                seed=seed,
            )
        )

    def score(self) -> None:
        gr, size = self._gr, self._playground.canvas_size
        black = Image.new("RGB", size)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = self._upload()
                gr.Markdown("Draw here:")
                editor = self._canvas("#ffffff", black)
                button = gr.Button("Score", variant="primary")
            with gr.Column(scale=3, min_width=320):
                words = gr.Markdown(
                    "The image is compared with samples that the model draws itself when first "
                    "asked, which takes a moment once."
                )
                plot = gr.Plot(show_label=False, format="png")
                gr.Markdown("The image as the model sees it:")
                seen = self._picture(height=130)
        self._on(upload.upload, self._shown, [upload], [editor], quick=True)
        # Without a picture the canvas is transparent, and white on white is hard to see.
        self._on(editor.clear, lambda: black, [], [editor], quick=True)
        self._on(button.click, self._scored, [editor], [words, plot, seen])

    def _shown(self, file: str) -> Any:
        return self._uploaded(file)[1]

    def _scored(self, drawn: Any) -> tuple[str, Any, Any]:
        picture = (drawn or {}).get("composite")
        if picture is None:
            raise ValueError("image: draw or upload one first")
        verdict = self._playground.score(picture)
        return verdict.words(), verdict.figure(), grid(verdict.image)

    def _upload(self) -> Any:
        return self._gr.UploadButton("Upload an image", file_types=["image"], size="sm")

    def _canvas(self, color: str, value: Image.Image | None) -> Any:
        """A place to paint in one colour, over a picture or on its own."""
        gr = self._gr
        return gr.ImageEditor(
            value,
            show_label=False,
            type="pil",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(BRUSH, colors=[color], color_mode="fixed"),
            eraser=gr.Eraser(BRUSH),
            canvas_size=self._playground.canvas_size,
            height=CANVAS + 100,
            elem_classes="crisp",
        )

    def _classes(self, label: str) -> Any:
        """A choice of the model's classes, and any."""
        choices = [ANY, *self._playground.classes]
        return self._gr.Dropdown(choices, value=min(1, len(choices) - 1), label=label)

    def _number(self, label: str, value: int) -> Any:
        return self._gr.Slider(1, 64, value, step=1, label=label)

    def _seed(self) -> Any:
        return self._gr.Number(0, precision=0, label="Seed")

    def _picture(self, height: int) -> Any:
        """A place for pictures without loss; a label or buttons would lie over their corners."""
        return self._gr.Image(
            height=height,
            format="png",
            interactive=False,
            show_label=False,
            buttons=[],
            elem_classes="crisp",
        )

    def _on(
        self,
        event: Any,
        handler: Callable[..., Any],
        inputs: list[Any],
        outputs: list[Any],
        *,
        quick: bool = False,
        **options: Any,
    ) -> None:
        """Calls a handler on an event; what it objects to is shown, not thrown."""

        @functools.wraps(handler)
        def told(*arguments: Any) -> Any:
            try:
                return handler(*arguments)
            except (CDRLError, ValueError, TypeError, OSError) as error:
                raise self._gr.Error(str(error), print_exception=False) from None

        # One at a time: a model's buffers serve one run. What needs no model does not queue for it.
        alone = {"concurrency_id": "model", "concurrency_limit": 1}
        event(told, inputs, outputs, **(QUICK if quick else alone), **options)
