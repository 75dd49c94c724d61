"""Measure how well a model's chains mix: acceptance per level, and the energy along the chain.

    python examples/diagnostics.py --out DIR
    python examples/diagnostics.py --model RUN --steps 15 5 --out DIR

Acceptance is the mean probability that a Metropolis test would accept a Langevin step; it is 1 for
a step without discretisation error. For the first number of steps, the energies along the chain
are drawn too, next to those of Metropolis-adjusted chains (MALA). Writes ``diagnostics.json`` and
``diagnostics.png``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from cdrl_fast import CDRL, Sampler, Trace
from cdrl_fast.sampling.label_terms import cycled_classes


def chains(sampler: Sampler, n: int, steps: int, metropolis: bool = False) -> Trace:
    """Return the trace of ``n`` chains, whose labels cycle through the classes."""
    label = cycled_classes(sampler.model, n)
    return sampler.sample_trace(n, label=label, steps=steps, metropolis=metropolis, trace="steps")


def acceptance(trace: Trace) -> dict[str, float]:
    """Return the mean acceptance by level, 1 … T."""
    assert trace.acceptance is not None
    means = trace.acceptance.mean(dim=1).flip(0).tolist()
    return {str(t): round(mean, 4) for t, mean in enumerate(means, start=1)}


def gains(trace: Trace) -> list[Tensor]:
    """Return, per level from T to 1, the log-densities less the proposal's, (steps + 1, n).

    The unknown constant of the log-density differs by level, so only differences are comparable.
    """
    differences = []
    for t in sorted(set(trace.levels.tolist()), reverse=True):
        energies = trace.energies[trace.levels == t]
        differences.append(energies - energies[0])
    return differences


def draw(rows: dict[str, dict[str, float]], plain: Trace, corrected: Trace, path: Path) -> None:
    """Draw the acceptance by level, and the energies along the chain with their middle 80 %."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 3.0), width_ratios=(1, 2), layout="constrained"
    )
    for steps, row in rows.items():
        left.plot([int(t) for t in row], list(row.values()), marker="o", ms=3, label=steps)
    left.set(xlabel="level (6 is noisiest)", ylabel="acceptance", ylim=(0.0, 1.02))
    left.legend(title="steps per level", fontsize=8, title_fontsize=8)
    names = {"Langevin": plain, "with Metropolis test": corrected}
    for color, (name, trace) in zip(("tab:blue", "tab:orange"), names.items(), strict=True):
        begun = 0
        for level in gains(trace):
            x = torch.arange(begun, begun + len(level))
            low, middle, high = level.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1)
            right.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
            right.plot(x, middle, color=color, lw=1.3, label=name if begun == 0 else None)
            begun += len(level)
    right.set_yscale("symlog", linthresh=1.0)
    right.set(xlabel="proposals and steps, level T to 1", ylabel="log-density less the proposal's")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--n", type=int, default=200, help="chains")
    parser.add_argument("--steps", type=int, nargs="+", default=[15, 8, 5, 3])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # Only float32 resolves the differences of energies between successive states.
    sampler = Sampler(CDRL.from_pretrained(options.model), precision="fp32")
    traces = {steps: chains(sampler, options.n, steps) for steps in options.steps}
    first = options.steps[0]
    corrected = chains(sampler, options.n, first, metropolis=True)
    rows = {str(steps): acceptance(trace) for steps, trace in traces.items()}
    rows[f"{first}, Metropolis"] = acceptance(corrected)
    levels = list(next(iter(rows.values())))
    print("| steps per level |", " | ".join(f"level {t}" for t in levels), "|")
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(f"{value:.2f}" for value in row.values()), "|")
    middle = {
        name: [level.median(dim=1).values.tolist() for level in gains(trace)]
        for name, trace in (("plain", traces[first]), ("metropolis", corrected))
    }
    command = shlex.join(["python", *sys.argv])
    record = {"command": command, "model": options.model, "chains": options.n}
    record |= {"acceptance": rows, "median_gain": middle}
    (options.out / "diagnostics.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(rows, traces[first], corrected, options.out / "diagnostics.png")


if __name__ == "__main__":
    main()
