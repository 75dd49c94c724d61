"""Write the table of docs/scaling.md: estimated times of the paper's runs on GPUs.

    python docs/tools/scaling.py --write
    python docs/tools/scaling.py --efficiency 0.2    # print the table for other assumptions

FLOP and parameters are counted on the networks, with meta tensors; times follow from the
assumptions, which are options.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from table import between  # noqa: E402

from cdrl_fast.data import Dataset  # noqa: E402
from cdrl_fast.training.flops import flop_of, training_flop  # noqa: E402
from cdrl_fast.training.recipe import Recipe, load_recipe  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- table: docs/tools/scaling.py --write -->", "<!-- end of table -->"
SAMPLES = 50_000
HEAD = (
    "model", "parameters, M", "one sample, TFLOP", "one iteration of 256, TFLOP",
    "400,000 iterations, 1 GPU", "8 GPUs, NVLink", "8 GPUs, InfiniBand", "50,000 samples, 1 GPU",
    "8 GPUs", "64 GPUs",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of a recipe.

    Attributes:
        name: the title of the recipe in the table.
        recipe: the recipe.
        parameters: the number of parameters of both networks.
        sample: the FLOP of sampling one image.
        iteration: the FLOP of a training iteration per image of its batch.
    """

    name: str
    recipe: Recipe
    parameters: int
    sample: float
    iteration: float

    def training_seconds(self, gpus: int, rate: float, bandwidth: float) -> float:
        """Return the time of all iterations, if no communication overlaps with computation.

        GPUs split the batch and all-reduce the float32 gradients in a ring once per iteration:
        2·(N - 1)/N of their bytes pass every link.
        """
        arithmetic = self.recipe.training.batch_size * self.iteration / gpus / rate
        exchange = 2 * (gpus - 1) / gpus * 4 * self.parameters / bandwidth
        return self.recipe.iterations * (arithmetic + exchange)


@torch.no_grad()
def count(name: str, recipe: Recipe, size: int) -> Cost:
    """Return the cost of a model of square RGB images, without labels."""
    empty = Dataset("empty", np.zeros((1, 3, size, size), np.uint8), None, ())
    with torch.device("meta"):
        model = recipe.model.build(empty).eval()
        inputs = torch.empty(1, 3, size, size), torch.empty(1)
    # An energy with its input gradient takes twice the FLOP of the energy.
    gradient = 2 * flop_of(partial(model.energy, *inputs))
    level = recipe.model.steps * gradient + flop_of(partial(model.initializer, *inputs))
    return Cost(
        name,
        recipe,
        sum(p.numel() for p in model.parameters()),
        recipe.model.levels * level + gradient,
        training_flop(model),
    )


def models() -> list[Cost]:
    """Return the costs of the paper's two CIFAR-10 runs, and of its network for larger images."""
    paper = load_recipe("cifar10")
    costs = [
        count("CIFAR-10, 32×32", paper, 32),
        count("CDRL-large, 32×32", load_recipe("cdrl-large"), 32),
    ]
    for size, stages in ((64, 1), (256, 3)):  # additional stages
        model = replace(
            paper.model,
            energy_multipliers=(*paper.model.energy_multipliers, *[2] * stages),
            initializer_multipliers=(*paper.model.initializer_multipliers, *[1] * stages),
        )
        costs.append(count(f"CIFAR-10's, for {size}×{size}", replace(paper, model=model), size))
    return costs


def duration(seconds: float) -> str:
    """Return a time with three digits and a unit."""
    units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, size = next((u for u in units if seconds >= 2 * u[1]), units[-1])
    return f"{seconds / size:.3g} {unit}"


def rows(rate: float, nvlink: float, infiniband: float) -> list[list[str]]:
    """Return the rows of the table at ``rate`` FLOP/s and the links' bytes/s."""
    return [
        [
            cost.name,
            f"{cost.parameters / 1e6:.3g}",
            f"{cost.sample / 1e12:.3g}",
            f"{cost.recipe.training.batch_size * cost.iteration / 1e12:,.0f}",
            duration(cost.training_seconds(1, rate, nvlink)),
            *(duration(cost.training_seconds(8, rate, link)) for link in (nvlink, infiniband)),
            *(duration(SAMPLES * cost.sample / gpus / rate) for gpus in (1, 8, 64)),
        ]
        for cost in models()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s; an H100 SXM, bfloat16")
    parser.add_argument("--efficiency", type=float, default=0.4, help="reached share of the peak")
    parser.add_argument("--nvlink", type=float, default=450e9, help="bytes/s each way")
    parser.add_argument("--infiniband", type=float, default=50e9, help="bytes/s each way")
    parser.add_argument("--write", action="store_true", help="write it into docs/scaling.md")
    options = parser.parse_args(arguments)
    body = rows(options.peak * options.efficiency, options.nvlink, options.infiniband)
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *body]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    print(table)
    if options.write:
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
