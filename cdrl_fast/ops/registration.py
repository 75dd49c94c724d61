"""Operations as torch sees them, `torch.ops.cdrl_fast.<name>`: compilers and graphs hold these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# `Library.define` costs 4 µs a call where the decorator `torch.library.custom_op` costs 28.
_LIBRARY: Any = torch.library.Library("cdrl_fast", "DEF")  # type: ignore[no-untyped-call]


def register(schema: str, kernel: Callable[..., None]) -> Callable[..., None]:
    """Registers an operation that writes its result into an argument and returns nothing.

    Args:
        schema: "name(Tensor(a!) out, …) -> ()".
        kernel: called for tensors on any device; chooses the room itself.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cdrl_fast::{name}", _fake, lib=_LIBRARY)
    return getattr(torch.ops.cdrl_fast, name).default


def _fake(*arguments: Any, **keywords: Any) -> None:
    """What an operation means for shapes: nothing, since it makes no tensor."""
