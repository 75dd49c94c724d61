"""`Report`, a self-contained HTML page; its template is page.html."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from cdrl_fast.report.pictures import INK, THEMED
from cdrl_fast.storage.folder import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG = "data:image/png;base64,"
_SVG_THEME = "svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d5dae1}}"


def _png(image: Image.Image, **options: Any) -> str:
    """Return ``image`` as the data URI of a PNG; ``options`` go to Pillow's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return _PNG + base64.b64encode(buffer.getvalue()).decode()


def _svg(figure: Figure) -> str:
    """Return ``figure`` as the data URI of an SVG."""
    themed, buffer = figure.get_gid() == THEMED, io.StringIO()
    figure.savefig(buffer, format="svg", transparent=themed, dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    if themed:
        text = text.replace(INK, "currentColor").replace("</style>", f"{_SVG_THEME}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def _cell(value: object) -> tuple[str, bool]:
    """Return a cell's text, floats with 4 digits, and whether it is a number."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, Real) and not isinstance(value, bool):
        return str(value) if isinstance(value, Integral) else f"{float(value):.4g}", True
    return "" if value is None else str(value), False


class Report:
    """HTML page in one self-contained file, built from top to bottom.

    All texts are escaped; a picture's caption is also its alternative text. Pictures added with
    ``half=True`` stand side by side if the window is wide enough.

    Args:
        title: the heading of the page and the title of the window.
        subtitle: a line under the heading.

    Examples:
        >>> import torch
        >>> from cdrl_fast.report import Report, image_grid
        >>> report = Report("Digits")
        >>> report.section("Samples")
        >>> report.image(image_grid(torch.zeros(4, 1, 8, 8)), "Four grey squares")
        >>> report.write("report.html")  # doctest: +SKIP
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[list[dict[str, Any]]] = []

    def _add(self, kind: str, **block: Any) -> None:
        """Add a block; ``kind`` is the name of its macro in page.html."""
        if not self._sections:
            self._sections.append([])
        self._sections[-1].append({"kind": kind, **block})

    def _picture(
        self, source: str, size: tuple[int, int], caption: str, half: bool, still: str = ""
    ) -> None:
        look = {"pixels": source.startswith(_PNG), "half": half}
        self._add("picture", source=source, size=size, caption=caption, still=still, **look)

    def section(self, title: str) -> None:
        """Begin a section with a title; all later additions belong to it."""
        self._sections.append([])
        self._add("heading", text=title)

    def text(self, text: str) -> None:
        """Add text; an empty line begins a new paragraph."""
        for paragraph in text.split("\n\n"):
            self._add("text", text=paragraph.strip())

    def image(self, image: Image.Image, caption: str, *, half: bool = False) -> None:
        """Add an image, losslessly as PNG, with a caption; ``half`` uses half the width."""
        self._picture(_png(image), image.size, caption, half)

    def figure(self, figure: Figure, caption: str, *, half: bool = False) -> None:
        """Add a matplotlib figure, as SVG, with a caption; ``half`` uses half the width.

        Figures of this package take the page's colours; others keep their own.
        """
        width, height = figure.get_size_inches()
        self._picture(_svg(figure), (round(96 * width), round(96 * height)), caption, half)

    def table(
        self,
        rows: Sequence[Mapping[str, object] | Sequence[object]],
        header: Sequence[str] | None = None,
    ) -> None:
        """Add a table.

        Args:
            rows: mappings from column to value (missing ones leave their cells empty), or lists.
            header: the columns in order; by default the keys of the mappings as they first occur.

        Raises:
            ValueError: lists without ``header``, or of another length than ``header``.
        """
        if header is None:
            if not all(isinstance(row, Mapping) for row in rows):
                raise ValueError("header: expected column names for rows that are lists, got None")
            header = list(dict.fromkeys(str(key) for row in rows for key in row))
        lines = [
            [row.get(key) for key in header] if isinstance(row, Mapping) else row for row in rows
        ]
        if any(len(line) != len(header) for line in lines):
            lengths = sorted({len(line) for line in lines})
            raise ValueError(f"rows: expected {len(header)} values in every row, got {lengths}")
        cells = [[_cell(value) for value in line] for line in lines]
        numbers = [any(line[i][1] for line in cells) for i in range(len(header))]
        self._add("table", header=list(zip(header, numbers, strict=True)), rows=cells)

    def animation(
        self,
        frames: Sequence[Image.Image],
        caption: str,
        milliseconds: int | Sequence[int] = 150,
        *,
        half: bool = False,
    ) -> None:
        """Add pictures of one size that play in a loop, as a lossless animated PNG.

        Args:
            frames: one or more pictures; readers who prefer reduced motion see only the last.
            caption: the caption, which is also the alternative text.
            milliseconds: duration of each frame: one number, or one per frame.
            half: use half the width.

        Raises:
            ValueError: no frame, unequal sizes or modes, or not one duration per frame.
        """
        if len({(frame.size, frame.mode) for frame in frames}) != 1:
            raise ValueError("frames: expected one or more pictures of one size and mode")
        times = [milliseconds] * len(frames) if isinstance(milliseconds, int) else milliseconds
        if len(times) != len(frames):
            raise ValueError(f"milliseconds: expected {len(frames)}, got {len(times)}")
        rest = list(frames[1:])
        film = _png(frames[0], save_all=True, append_images=rest, duration=list(times), loop=0)
        self._picture(film, frames[0].size, caption, half, still=_png(frames[-1]))

    def html(self) -> str:
        """Return the page as HTML text."""
        from jinja2 import Template  # pictures do not need it

        source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        page = Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return page.render(title=self.title, subtitle=self.subtitle, sections=self._sections)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to ``path`` atomically; missing folders are created.

        Raises:
            OSError: the file cannot be written; an existing file stays unchanged.
        """
        write_atomic(Path(path), self.html().encode())
