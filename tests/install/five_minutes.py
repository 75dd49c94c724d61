"""Run the five-minute start of the docs line by line, and time each step.

    python tests/install/five_minutes.py --out benchmarks/results/five-minutes.json

The commands and Python blocks of ``docs/index.md`` run in their order in a copy of the source
tree, with a new environment; a folder ``photos`` with a few pictures is created for the last one.
``--torch`` replaces the line that installs PyTorch's CPU build, if its index cannot be reached.
Exits with 1 at the first line that fails.
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
# The last command of the page trains without a limit.
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
    """Return ("bash", line) and ("python", block) in the order of the page."""
    result: list[tuple[str, str]] = []
    for kind, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "python":
            result.append((kind, block))
            continue
        for line in block.splitlines():
            line = line.split("   #")[0].strip()
            if "download.pytorch.org" in line and torch:
                line = f"pip install {torch}"
            line += "".join(options for part, options in SHORT.items() if part in line)
            result.append(("bash", line))
    return result


def run(command: str, tree: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, in the environment of the page once that exists."""
    active = (tree / ".venv" / "bin" / "activate").exists()
    line = f"source .venv/bin/activate; {command}" if active else command
    return subprocess.run(["bash", "-c", line], cwd=tree, capture_output=True, text=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=None, help="such as torch==2.13.0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    timed: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "cdrl_fast"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        for kind, text in steps(PAGE.read_text(), options.torch):
            if "folder:photos" in text:
                subprocess.run([tree / ".venv/bin/python", "-c", PHOTOS], cwd=tree, check=True)
            if kind == "python":
                # The blocks form one session, so each run repeats, and times, the earlier ones.
                with (tree / "session.py").open("a") as session:
                    session.write(text)
            command = text if kind == "bash" else "python session.py"
            begun = time.perf_counter()
            done = run(command, tree)
            seconds = time.perf_counter() - begun
            shown = text if kind == "bash" else f"Python: … {text.splitlines()[-1]}"
            print(f"{seconds:7.1f} s  {shown}", flush=True)
            if done.returncode:
                print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
                return 1
            timed.append({"step": shown, "seconds": round(seconds, 1)})
    total = sum(float(str(row["seconds"])) for row in timed)
    record = {"command": shlex.join(["python", *sys.argv])}
    record |= {"total": round(total, 1), "steps": timed}
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{total:7.1f} s in total")
    return 0


if __name__ == "__main__":
    sys.exit(main())
