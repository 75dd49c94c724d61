"""Model cards: the ``README.md`` of a shared model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

CARD, PICTURE = "README.md", "samples.png"


@dataclass(frozen=True)
class ModelCard:
    """Model card: the description of a model that the Hugging Face Hub shows.

    Args:
        about: Markdown text: the purpose of the model, its data and their licence, its limits.
        license: SPDX identifier of the weights' licence, such as "apache-2.0"; None leaves it out.
        metrics: values by name, as `cdrl-fast evaluate` computes them.
        recipe: JSON values that describe the training, such as a run's ``recipe.json``.
        picture: image of samples; it is written next to the card as ``samples.png``.

    Examples:
        >>> from cdrl_fast import CDRL, ModelCard
        >>> card = ModelCard("Digits, 8×8.", license="apache-2.0", metrics={"accuracy": 0.976})
        >>> "license: apache-2.0" in card.text(CDRL.from_pretrained("digits"), "digits")
        True
    """

    about: str = ""
    license: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    picture: Image.Image | None = None

    def text(self, model: Any, name: str) -> str:
        """Return the card of a model as Markdown with the Hub's YAML header.

        Args:
            model: a `CDRL`.
            name: the argument of `CDRL.from_pretrained` that loads the model.

        Returns:
            The text of ``README.md``.
        """
        parts = [_header(self.license), f"# {name}", _summary(model)]
        parts += [self.about.strip()] if self.about.strip() else []
        if self.picture is not None:
            parts.append(f"![Samples]({PICTURE})")
        parts += ["## Use", f"```python\n{_use(model, name)}\n```"]
        if self.metrics:
            parts += ["## Metrics", _table(self.metrics)]
        if self.recipe is not None:
            recipe = json.dumps(self.recipe, indent=2, ensure_ascii=False)
            parts += ["## Recipe", f"```json\n{recipe}\n```"]
        return "\n\n".join(parts) + "\n"

    def files(self, model: Any, name: str) -> dict[str, bytes]:
        """Return the files of the card by name: ``README.md`` and, with a picture, its PNG.

        Args:
            model, name: as in `text`.

        Returns:
            Contents by file name.

        Examples:
            >>> from cdrl_fast import CDRL, ModelCard
            >>> list(ModelCard().files(CDRL.from_pretrained("digits"), "digits"))
            ['README.md']
        """
        files = {CARD: self.text(model, name).encode()}
        if self.picture is not None:
            buffer = io.BytesIO()
            self.picture.save(buffer, format="PNG")
            files[PICTURE] = buffer.getvalue()
        return files


def _header(license: str | None) -> str:
    lines = ["library_name: cdrl_fast", "tags:", "- energy-based-model", "- cdrl"]
    lines += [] if license is None else [f"license: {license}"]
    return "\n".join(["---", *lines, "---"])


def _summary(model: Any) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    shape = "×".join(str(n) for n in model.sample_shape)
    method = "CDRL" if model.initializer is not None else "DRL (no initializer)"
    classes = f"{model.num_classes} classes" if model.num_classes else "unconditional"
    kind = "images" if model.is_image else "points"
    return (
        f"An energy-based model of {kind} ({shape}), {classes}, "
        f"by {method}: {parameters:,} parameters, {model.schedule.levels} noise levels of "
        f"{model.schedule.steps} Langevin steps."
    )


def _use(model: Any, name: str) -> str:
    first = model.classes[0] if isinstance(model.classes, tuple) else 1
    label = f", label={first!r}" if model.num_classes else ""
    return (
        "from cdrl_fast import Sampler\n\n"
        f"sampler = Sampler.from_pretrained({name!r})\n"
        f"samples = sampler.sample(16{label})\n"
        "scores = sampler.log_density(samples)"
    )


def _table(values: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = [("metric", "value"), ("---", "---:")]
    for name, value in values.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        rows.append((name, f"{float(value):.4g}" if number else str(value)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
