"""Whether a configuration's values have the types that its fields say."""

from __future__ import annotations

import math
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_field_types(config: Any) -> None:
    """Raises ValueError unless every field of a dataclass holds what its annotation says.

    An integer serves as a number; NaN and infinities do not.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if not _fits(value, kind):
            raise ValueError(
                f"{type(config).__name__}: expected {field.name} {_words(kind)}, got {value!r}"
            )


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin is UnionType:
        return any(_fits(value, part) for part in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        quoted = [f'"{part}"' for part in parts]
        return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    if origin is UnionType:
        return " or ".join(_words(part) for part in parts)
    if origin is tuple:
        return f"a list of {_words(parts[0])}"
    return {float: "a number", type(None): "null"}.get(kind, kind.__name__)
