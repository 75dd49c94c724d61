"""Walks through the five-minute start as a newcomer would, line by line, and times each step.

    python tests/install/five_minutes.py --out benchmarks/results/five-minutes.json

In a copy of the tree, a new environment is made and the commands and Python blocks of
``docs/index.md`` are run in their order; a folder ``photos`` with a few pictures is put there for
the last. ``--torch`` replaces the line that fetches PyTorch's CPU build, where its index cannot be
reached. Status 1 at the first line that fails.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from install_matrix import NOT_SOURCE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "index.md"
# By the page the last run is one's own and takes as long as one likes.
SHORT = {"--data folder:photos": " --iterations 20 --batch-size 16"}
PHOTOS = """
import numpy as np
from pathlib import Path
from PIL import Image
for i, name in enumerate(("a", "b") * 8):
    path = Path("photos", name, f"{i}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
"""


def steps(text: str, torch: str | None) -> list[tuple[str, str]]:
    """("bash", a line) and ("python", a block) in the page's order."""
    found: list[tuple[str, str]] = []
    for kind, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "python":
            found.append((kind, block))
            continue
        for line in block.splitlines():
            line = line.split("   #")[0].strip()
            if "download.pytorch.org" in line and torch:
                line = f"pip install {torch}"
            line += "".join(more for words, more in SHORT.items() if words in line)
            found.append(("bash", line))
    return found


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """A command in the page's environment, once it is there."""
    active = (place / ".venv" / "bin" / "activate").exists()
    line = f"source .venv/bin/activate; {command}" if active else command
    return subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=None, help="such as torch==2.13.0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    timed: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cdrl_fast"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        for kind, text in steps(PAGE.read_text(), options.torch):
            if "folder:photos" in text:
                subprocess.run([place / ".venv/bin/python", "-c", PHOTOS], cwd=place, check=True)
            if kind == "python":
                # One session to the reader: what came before is run, and timed, again.
                with (place / "session.py").open("a") as session:
                    session.write(text)
            command = text if kind == "bash" else "python session.py"
            begun = time.perf_counter()
            done = run(command, place)
            seconds = time.perf_counter() - begun
            shown = text if kind == "bash" else f"Python: … {text.splitlines()[-1]}"
            print(f"{seconds:7.1f} s  {shown}", flush=True)
            if done.returncode:
                print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
                return 1
            timed.append({"step": shown, "seconds": round(seconds, 1)})
    total = sum(float(str(row["seconds"])) for row in timed)
    found = {"command": shlex.join(["python", *sys.argv]), "total": round(total, 1), "steps": timed}
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{total:7.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
