"""`Report`, a self-contained HTML page, and its template."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Integral, Real
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from cdrl_fast.report.pictures import INK, THEMED
from cdrl_fast.storage.folder import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG = "data:image/png;base64,"
_NUMBER = '<td class="number">'
_SVG_THEME = "svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d5dae1}}"
# The Content-Security-Policy makes browsers refuse everything that is not inside the file.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --ink: #1f2328; --soft: #5c6570; --line: #d8dde3; --page: #f5f6f8; --card: #fff; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #d5dae1; --soft: #98a2ae; --line: #30363f; --page: #101317; --card: #181c22; } }
* { box-sizing: border-box; margin: 0; }
body { padding: 2.5rem 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main { max-width: 62rem; margin: 0 auto; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; }
p { max-width: 46rem; }
header p, figcaption, th { color: var(--soft); }
section { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 1.5rem; margin-top: 1.5rem; padding: 1.25rem 1.4rem 1.4rem; break-inside: avoid;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section > * { grid-column: 1 / -1; min-width: 0; }
section > .half { grid-column: auto; align-self: end; }
img { display: block; max-width: 100%; height: auto; }
.pixels { image-rendering: pixelated; border-radius: 3px; }
@media (max-width: 62rem) { .pixels { image-rendering: auto; } }
figcaption { margin-top: .45rem; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem 2rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
tr > :last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
</style>
</head>
<body>
<header><h1>$title</h1>$subtitle</header>
<main>
$body
</main>
</body>
</html>
""")


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


def _cell(value: object) -> str:
    """Return a table cell, with numbers to the right, floats to 4 digits and text escaped."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if value is None:
        return "<td></td>"
    if isinstance(value, Real) and not isinstance(value, bool):
        text = str(value) if isinstance(value, Integral) else f"{float(value):.4g}"
        return f"{_NUMBER}{text}</td>"
    return f"<td>{escape(str(value))}</td>"


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
        self._sections: list[list[str]] = []

    def _add(self, block: str) -> None:
        if not self._sections:
            self._sections.append([])
        self._sections[-1].append(block)

    def _picture(
        self, source: str, size: tuple[int, int], caption: str, half: bool, still: str = ""
    ) -> None:
        text, kind = escape(caption), ' class="pixels"' if source.startswith(_PNG) else ""
        tag = f'<img{kind} src="{source}" width="{size[0]}" height="{size[1]}" alt="{text}">'
        if still:
            reduced = f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
            tag = f"<picture>{reduced}{tag}</picture>"
        kind = ' class="half"' if half else ""
        self._add(f"<figure{kind}>{tag}<figcaption>{text}</figcaption></figure>")

    def section(self, title: str) -> None:
        """Begin a section with a title; all later additions belong to it."""
        self._sections.append([f"<h2>{escape(title)}</h2>"])

    def text(self, text: str) -> None:
        """Add text; an empty line begins a new paragraph."""
        for paragraph in text.split("\n\n"):
            self._add(f"<p>{escape(paragraph.strip())}</p>")

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
        top = ""
        for index, name in enumerate(header):
            kind = ' class="number"' if any(_NUMBER in line[index] for line in cells) else ""
            top += f'<th{kind} scope="col">{escape(name)}</th>'
        body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in cells)
        self._add(
            f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table></div>"
        )

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
        title, subtitle = escape(self.title), escape(self.subtitle)
        sections = ("\n".join(["<section>", *blocks, "</section>"]) for blocks in self._sections)
        return _PAGE.substitute(
            title=title,
            subtitle=f"<p>{subtitle}</p>" if subtitle else "",
            body="\n".join(sections),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to ``path`` atomically; missing folders are created.

        Raises:
            OSError: the file cannot be written; an existing file stays unchanged.
        """
        write_atomic(Path(path), self.html().encode())
