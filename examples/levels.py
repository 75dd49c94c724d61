"""Draw the noise levels in two pictures: data with noise, and chains with their proposals.

    python examples/levels.py --out DIR

``noising.png`` shows held-out digits, x_0 … x_T. ``proposals.png`` shows four chains from x_T to
x_0; between two levels is the initializer's proposal, which the Langevin steps refine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from cdrl_fast import CDRL, Sampler, normal
from cdrl_fast.data import load_data
from cdrl_fast.report import film_strip
from cdrl_fast.training.recipe import load_recipe


def noised(model: CDRL, x0: Tensor) -> list[Tensor]:
    """Return √ᾱ_t x_0 + √(1 - ᾱ_t) ε for t = 0 … T, with one ε per sample."""
    noise = normal(x0.shape, seed=0, draw=0)
    schedule = model.schedule
    return [schedule.add_noise(x0, noise, t) for t in range(schedule.levels + 1)]


def proposals(model: CDRL, chains: int) -> tuple[list[Tensor], list[str]]:
    """Return the states x_T … x_0 of chains, each after its proposal, and the names of both."""
    labels = torch.arange(chains) + 1
    trace = Sampler(model, precision="fp32").sample_trace(chains, label=labels)
    assert model.initializer is not None
    states, names = [trace.states[0]], [f"x{model.schedule.levels}"]
    for t in range(model.schedule.levels, 0, -1):
        level = model.schedule.level(t)
        x = trace.states[model.schedule.levels - t]
        logsnr = torch.full((1,), float(model.schedule.logsnr[t]))
        with torch.no_grad():
            proposed = model.initializer(x, logsnr, labels) / level.scale
        states += [proposed, trace.states[model.schedule.levels - t + 1]]
        names += ["proposed", f"x{t - 1}"]
    return states, names


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("levels"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model = CDRL.from_pretrained("digits")
    _, held_out = load_data("digits").split(load_recipe("digits").held_out)
    strip = noised(model, held_out.batch(range(6))[0])
    names = [f"x{t}" for t in range(len(strip))]
    film_strip(strip, labels=names).save(options.out / "noising.png")
    states, names = proposals(model, 4)
    film_strip(states, labels=names).save(options.out / "proposals.png")
    print(f"{options.out}: noising.png, proposals.png")


if __name__ == "__main__":
    main()
