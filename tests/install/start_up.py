"""Print medians of the command line's times to start, each command run ten times in turn.

python tests/install/start_up.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 10
CODE = {
    "import torch": "import torch",
    "import cdrl_fast": "import cdrl_fast",
    "cdrl_fast.Sampler": "import cdrl_fast; cdrl_fast.Sampler",
}
COMMANDS = {name: ["-c", code] for name, code in CODE.items()} | {
    f"cdrl-fast {options}": ["-m", "cdrl_fast", *options.split()]
    for options in ("--help", "sample --help", "--tyro-print-completion bash", "about")
}


def seconds(options: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, options in COMMANDS.items():
            times[name].append(seconds(options))
    for name, values in times.items():
        print(f"{name:40} {statistics.median(values):.2f} s")
