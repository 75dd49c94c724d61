"""``cdrl-fast app``: a page in the browser to try a model on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cdrl_fast._lazy import optional_module
from cdrl_fast.app.playground import BOTH, CANVAS, EITHER, KINDS, NOT, Film, Playground, grid
from cdrl_fast.errors import CDRLError
from cdrl_fast.model.cdrl import CDRL

if TYPE_CHECKING:
    import gradio

# The browser must not smooth enlarged pixels.
CSS = ".crisp img { image-rendering: pixelated; }"
ANY = ("any", 0)
BRUSH = 18
WITHOUT_MODEL = {"concurrency_limit": None, "show_progress": "hidden"}
# Calls of the model share its buffers and so run one at a time; other handlers need not wait.
WITH_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
FONTS = ["system-ui", "sans-serif"]


def build_app(model: CDRL) -> gradio.Blocks:
    """Build the page for a model of images; `launch` serves it.

    Args:
        model: a model of grey or colour images, on the device that computes.

    Raises:
        ImportError: gradio or matplotlib is not installed.
        ValueError: a model of points, or of images with neither 1 nor 3 channels.

    Examples:
        >>> from cdrl_fast import CDRL
        >>> from cdrl_fast.app.page import build_app, launch
        >>> launch(build_app(CDRL.from_pretrained("digits")), port=7860)  # doctest: +SKIP
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
    """Serve a page of `build_app` on this machine, with the system's fonts.

    The page loads nothing from other servers.

    Args:
        page: what `build_app` returns.
        port: the port to listen on.
        options: further arguments of gradio's ``launch``, such as ``share`` and ``inbrowser``.

    Returns:
        What gradio's ``launch`` returns.

    Raises:
        OSError: the port is not free.

    Examples:
        >>> from cdrl_fast import CDRL
        >>> from cdrl_fast.app.page import build_app, launch
        >>> launch(build_app(CDRL.from_pretrained("digits")), port=7860)  # doctest: +SKIP
    """
    gr = optional_module("gradio", "gradio", "app")
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    try:
        return page.launch(
            server_port=port, theme=theme, css=CSS, footer_links=[], ssr_mode=False, **options
        )
    except OSError as error:
        raise OSError(
            f"port: gradio cannot listen on {port}, which may be in use; pass another --port"
        ) from error


def _headline(model: CDRL) -> str:
    channels, height, width = model.sample_shape
    colours = "grey" if channels == 1 else "colour"
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"## An energy-based model of {colours} images\n{height}×{width} pixels{classes}, "
        f"{parameters:,} parameters, {model.schedule.levels} noise levels"
    )


class _Tabs:
    """The tabs: their controls and event handlers."""

    def __init__(self, gr: Any, playground: Playground) -> None:
        self._gr, self._playground = gr, playground

    def sample(self) -> None:
        """Build the tab that draws samples."""
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
                steps = gr.Slider(1, most, schedule.steps, step=1, label="Steps per level")
                number = self._number("Samples", 16)
                seed = self._seed()
                button = gr.Button("Sample", variant="primary")
            with gr.Column(scale=3, min_width=320):
                caption = gr.Markdown("Press Sample to draw samples.")
                picture = self._picture(height=480)
                done = gr.Slider(
                    0,
                    schedule.levels,
                    schedule.levels,
                    step=1,
                    label="Watch the chain: levels done",
                    info=f"0 is noise, {schedule.levels} the samples",
                    interactive=True,
                )
        inputs = {"label": label, "guidance": guidance, "steps": steps, "n": number, "seed": seed}
        self._on(button.click, self._draw_samples, inputs, [film, caption, picture, done])
        self._on(label.change, self._show_guidance, {"label": label}, [guidance], model=False)
        inputs = {"film": film, "done": done}
        self._on(done.input, self._show_level, inputs, [caption, picture], model=False)

    def _show_guidance(self, label: int) -> Any:
        # Guidance needs a class.
        return self._gr.update(visible=bool(label))

    def _draw_samples(self, **options: Any) -> tuple[Film, str, Any, int]:
        film = self._playground.sample(**options)
        return film, film.caption(film.levels), film.picture(film.levels), film.levels

    def _show_level(self, film: Film | None, done: int) -> tuple[str, Any]:
        if film is None:
            raise ValueError("chain: draw samples first")
        return film.caption(done), film.picture(done)

    def complete(self) -> None:
        """Build the tab that fills painted parts of an image."""
        gr = self._gr
        image, index = gr.State(None), gr.State(0)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                label = self._classes("Class")
                seed = self._seed()
                with gr.Row():
                    draw = gr.Button("Draw a sample", size="sm")
                    upload = self._upload()
                gr.Markdown("Paint over the part to fill:")
                editor = self._canvas("#e07b39", None)
            with gr.Column(scale=3, min_width=320):
                number = self._number("Completions", 8)
                passes = gr.Slider(1, 16, 4, step=1, label="Passes")
                button = gr.Button("Complete", variant="primary")
                gr.Markdown("The known part, grey elsewhere, then the completions:")
                picture = self._picture(height=364)
        # gradio never removes a progress display from a painted canvas.
        inputs = {"label": label, "seed": seed, "index": index}
        outputs = [image, index, editor]
        self._on(draw.click, self._draw_image, inputs, outputs, show_progress="hidden")
        self._on(upload.upload, self._load_image, {"file": upload}, [image, editor], model=False)
        self._on(editor.clear, self._restore_image, {"image": image}, [editor], model=False)
        inputs = {"image": image, "paint": editor, "n": number}
        inputs |= {"label": label, "passes": passes, "seed": seed}
        self._on(button.click, self._complete_image, inputs, [picture])

    def _draw_image(self, label: int, seed: int, index: int) -> tuple[Tensor, int, Any]:
        image = self._playground.draw(label, seed, index)
        return image, index + 1, self._playground.canvas(image)

    def _load_image(self, file: str) -> tuple[Tensor, Any]:
        image = self._playground.fit_image(file)
        return image, self._playground.canvas(image)

    def _restore_image(self, image: Tensor | None) -> Any:
        # Clearing the canvas removes the picture as well as the paint.
        return None if image is None else self._playground.canvas(image)

    def _complete_image(self, image: Tensor | None, paint: Any, **options: Any) -> Any:
        layers = (paint or {}).get("layers", ())
        known, completions = self._playground.complete(image, layers, **options)
        return grid(torch.cat([known, completions]))

    def compose(self) -> None:
        """Build the tab that combines two classes."""
        gr, classes = self._gr, self._playground.classes
        if not classes:
            gr.Markdown("This model has no classes to combine.")
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
                correctors = gr.Slider(0, 60, 15, step=1, label="Correctors per level")
                number = self._number("Samples", 16)
                seed = self._seed()
                button = gr.Button("Compose", variant="primary")
            with gr.Column(scale=3, min_width=320):
                picture = self._picture(height=480)
        self._on(kind.change, self._show_weights, {"kind": kind}, [weight, share], model=False)
        inputs = {"first": first, "second": second, "kind": kind, "weight": weight, "share": share}
        inputs |= {"correctors": correctors, "n": number, "seed": seed}
        self._on(button.click, self._draw_composition, inputs, [picture])

    def _show_weights(self, kind: str) -> tuple[Any, Any]:
        return self._gr.update(visible=kind == NOT), self._gr.update(visible=kind == EITHER)

    def _draw_composition(self, **options: Any) -> Any:
        return grid(self._playground.compose(**options))

    def score(self) -> None:
        """Build the tab that places an image among samples by its log-density."""
        gr, size = self._gr, self._playground.canvas_size
        black = Image.new("RGB", size)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = self._upload()
                gr.Markdown("Draw here:")
                editor = self._canvas("#ffffff", black)
                button = gr.Button("Score", variant="primary")
            with gr.Column(scale=3, min_width=320):
                description = gr.Markdown(
                    "The image is compared with samples of the model. The first score takes a "
                    "moment longer, because they are drawn then."
                )
                plot = gr.Plot(show_label=False, format="png")
                gr.Markdown("The image as the model sees it:")
                model_input = self._picture(height=130)
        self._on(upload.upload, self._load_canvas, {"file": upload}, [editor], model=False)
        # A canvas without a picture is transparent, and white paint on white is hard to see.
        self._on(editor.clear, lambda: black, {}, [editor], model=False)
        outputs = [description, plot, model_input]
        self._on(button.click, self._score_image, {"drawing": editor}, outputs)

    def _load_canvas(self, file: str) -> Any:
        return self._load_image(file)[1]

    def _score_image(self, drawing: Any) -> tuple[str, Any, Any]:
        picture = (drawing or {}).get("composite")
        if picture is None:
            raise ValueError("image: draw or upload one first")
        score = self._playground.score(picture)
        return score.describe(), score.figure(), grid(score.image)

    def _upload(self) -> Any:
        return self._gr.UploadButton("Upload an image", file_types=["image"], size="sm")

    def _canvas(self, color: str, background: Image.Image | None) -> Any:
        """Return a canvas to paint on in one colour, over a picture if there is one."""
        gr = self._gr
        return gr.ImageEditor(
            background,
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
        """Return a choice of "any" and the model's classes."""
        choices = [ANY, *self._playground.classes]
        return self._gr.Dropdown(choices, value=min(1, len(choices) - 1), label=label)

    def _number(self, label: str, value: int) -> Any:
        return self._gr.Slider(1, 64, value, step=1, label=label)

    def _seed(self) -> Any:
        return self._gr.Number(0, precision=0, label="Seed")

    def _picture(self, height: int) -> Any:
        """Return a display of lossless pictures; a label or buttons would cover their corners."""
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
        inputs: dict[str, Any],
        outputs: list[Any],
        *,
        model: bool = True,
        **options: Any,
    ) -> None:
        """Call a handler on an event and show its errors on the page.

        Args:
            inputs: controls whose values the handler takes, by the names of its arguments.
            model: whether the handler calls the model.
        """

        def showing_errors(*values: Any) -> Any:
            try:
                return handler(**dict(zip(inputs, values, strict=True)))
            except (CDRLError, ValueError, TypeError, OSError) as error:
                raise self._gr.Error(str(error), print_exception=False) from None

        showing_errors.__name__ = handler.__name__
        queue = WITH_MODEL if model else WITHOUT_MODEL
        event(showing_errors, list(inputs.values()), outputs, **queue, **options)
