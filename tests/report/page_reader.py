"""A parser of written pages, and images for them."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import torch
from PIL import Image

VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """A strict parser of a page: checks that tags are closed in order, stores attributes, text."""

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
        """Return the content of each <img>, whose source must be a data URI."""
        sources = [str(attributes["src"]) for attributes in self.all("img")]
        assert all(re.match(r"data:image/(png|svg\+xml);base64,", source) for source in sources)
        return [base64.b64decode(source.split(",", 1)[1], validate=True) for source in sources]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def rising(count: int) -> torch.Tensor:
    """Return images (count, 1, 2, 3), each of one value, from -1 to 1."""
    return torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 1, 2, 3)
