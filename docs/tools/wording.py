"""Check the project's wording: private words, docstrings' first words, identifiers.

    python docs/tools/wording.py [FILE …]

Without arguments, every file that git tracks is read. Exits with 1 and names each place.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.compile(
    r"(?<![A-Za-z])(rooms?|corridors?|houses?|afternoons?|finite numbers|floors?)(?![A-Za-z])", re.I
)
"""Words of no other field; ``floor(`` and ``_floor_`` of roundings are left out by `ROUNDING`."""
ROUNDING = re.compile(r"(math|np|numpy|torch|std|tl|libdevice)(\.|::)floor|floor_divide|\.floor\(")
OLD_KEYS = re.compile(r'"(share_of_floor|frechet_floor|afternoon)"')
"""Keys in logs and results that version 0.1 wrote, which readers still accept."""
FIRST = re.compile(r"(Of|What|Those|Which|Where)\b")
NAMES = {
    "asked", "conditions", "found", "gathered", "given", "held", "hold", "least", "like", "made",
    "peers", "products", "told", "turn", "turns", "walk", "wanted", "whole", "words",
}  # fmt: skip
"""No identifier that the project binds has one of these between its underscores."""
SUFFIXES = {
    "", ".cpp", ".cu", ".cuh", ".h", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"
}  # fmt: skip
ELSEWHERE = ("docs/tools/wording.py", "CHANGELOG.md", "LICENSE", "benchmarks/results/")
"""Files that name the words: this one, the table of old names; and results of earlier versions."""


def main(arguments: list[str]) -> int:
    """Print every place; return 1 where there is any."""
    places = [place for path in _files(arguments) for place in _places(path)]
    print(*places, sep="\n", end="\n" if places else "")
    return 1 if places else 0


def _files(arguments: list[str]) -> list[Path]:
    if arguments:
        return [Path(name).resolve() for name in arguments]
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [
        ROOT / name
        for name in names
        if name and Path(name).suffix in SUFFIXES and not name.startswith(ELSEWHERE)
    ]


def _places(path: Path) -> Iterator[str]:
    text = path.read_text()
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for number, line in enumerate(text.splitlines(), 1):
        for match in TEXT.finditer(OLD_KEYS.sub("", ROUNDING.sub("", line))):
            yield f"{name}:{number}: the word {match[0]!r}"
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        for identifier in _bound(node):
            for part in NAMES.intersection(_parts(identifier)):
                yield f"{name}:{node.lineno}: the name {identifier!r} ({part})"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            match = FIRST.match(ast.get_docstring(node) or "")
            if match:
                line = getattr(node, "lineno", 1)
                yield f"{name}:{line}: a docstring that begins with {match[0]!r}"


def _parts(identifier: str) -> list[str]:
    """Split at underscores and before capitals; two terms of the field stay whole."""
    for term in ("held_out", "at_least"):
        identifier = identifier.replace(term, "")
    return re.split(r"_|(?<=[a-z])(?=[A-Z])", identifier)


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the identifiers that a node binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        if not node.name.startswith("test_"):  # these are sentences
            yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
