"""Prints the tables of docs/scaling.md, and with --write puts them there.

    python scripts/scaling.py --write

The assumptions are options, see --help: other ones give other tables. CPU times are read from
benchmarks/results/benchmarks.jsonl. `cost_model.py` beside this has the arithmetic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from benchmark_table import RESULTS, between, lines  # noqa: E402
from cost_model import Cost, Machine, count  # noqa: E402

from cdrl_fast.recipe import Recipe, load_recipe  # noqa: E402

PAGE = HERE.parent / "docs" / "scaling.md"
GPUS = (1, 8, 64, 1024)
A_MACHINE = 8
"""GPUs that NVLink joins."""
LINKS = {
    "NVLink": 450e9,
    "InfiniBand": 400e9 / 8,
    "Ethernet": 25e9 / 8,
}
"""Bytes a second each way, as published: NVLink 4 of an H100; NDR; 25 Gb/s."""
CPU_GROUP, CPU_CONTENDER = "energy gradient, paper's network, 32×32, batch 8", "ours, bf16"
IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Model:
    """A row of the table of models."""

    name: str
    recipe: Recipe
    size: int
    cost: Cost


def models() -> list[Model]:
    """The paper's two CIFAR-10 runs, and its network carried on to larger images."""
    paper, wide = load_recipe("cifar10"), load_recipe("cdrl-large")
    found = [("CIFAR-10, 32×32", paper, 32), ("CDRL-large, 32×32", wide, 32)]
    for size, more in ((64, 1), (256, 3)):
        model = replace(
            paper.model,
            energy_multipliers=(*paper.model.energy_multipliers, *[2] * more),
            initializer_multipliers=(*paper.model.initializer_multipliers, *[1] * more),
        )
        found.append((f"… carried on to {size}×{size}", replace(paper, model=model), size))
    return [Model(name, recipe, size, count(recipe.model, size)) for name, recipe, size in found]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    body = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def number(value: float) -> str:
    """Three significant digits; thousands whole."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def duration(seconds: float) -> str:
    for unit, size, least in (("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1)):
        if seconds >= least * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e3)} ms"


def machine_table(machine: Machine) -> str:
    rows = [
        [
            "products in bfloat16, dense",
            f"{number(machine.peak / 1e12)} TFLOP/s",
            "NVIDIA, H100 SXM: 1,979 with sparsity",
        ],
        ["streaming multiprocessors", f"{machine.processors}", "NVIDIA, H100 SXM"],
        ["memory", f"{number(machine.memory / 1e9)} GB", "NVIDIA, H100 SXM"],
        ["NVLink 4, each way", f"{number(LINKS['NVLink'] / 1e9)} GB/s", "NVIDIA: 900 both ways"],
        ["InfiniBand, each way", f"{number(LINKS['InfiniBand'] / 1e9)} GB/s", "NDR, 400 Gb/s"],
        ["Ethernet, each way", f"{number(LINKS['Ethernet'] / 1e9)} GB/s", "25 Gb/s"],
        ["share of the peak, all busy", f"{machine.efficiency:.0%}", "assumed: `--efficiency`"],
        ["tiles of products", "/".join(map(str, machine.tiles)), "assumed; rate ∝ side"],
        [
            "least time of a kernel",
            f"{number(machine.kernel_seconds * 1e6)} µs",
            "assumed: `--kernel-us`",
        ],
        ["delay of a message", f"{number(machine.hop_seconds * 1e6)} µs", "assumed: `--hop-us`"],
    ]
    return table(["figure", "value", "whose"], rows)


def model_table(found: list[Model]) -> str:
    head = [
        "model", "parameters, M", "gradient, GFLOP", "sample, TFLOP", "iteration of 256, TFLOP",
        "… of it the chain", "exchanged, MB", "state, GB",
    ]  # fmt: skip
    rows = [
        [
            m.name,
            number(m.cost.parameters / 1e6),
            number(m.cost.gradient / 1e9),
            number(m.cost.sample() / 1e12),
            number(m.recipe.training.batch_size * m.cost.training / 1e12),
            f"{m.cost.steps * m.cost.gradient / m.cost.training:.0%}",
            number(m.cost.exchanged / 1e6),
            number(m.cost.state / 1e9),
        ]
        for m in found
    ]
    return table(head, rows)


def memory_table(found: list[Model], machine: Machine) -> str:
    head = [
        "model", "autograd, MB an image", "… blocks again, MB", "chain, MB an image",
        "images in a training batch", "… blocks again",
    ]  # fmt: skip
    rows = []
    for m in found:
        free = machine.memory - m.cost.state
        rows.append(
            [
                m.name,
                number(m.cost.kept / 1e6),
                number(m.cost.kept_by_blocks / 1e6),
                number(m.cost.chain / 1e6),
                number(free // m.cost.kept),
                number(free // m.cost.kept_by_blocks),
            ]
        )
    return table(head, rows)


def exchange_table(model: Model, machine: Machine) -> str:
    cost, batch = model.cost, model.recipe.training.batch_size
    rows = []
    for gpus in GPUS[1:]:
        images = batch // gpus
        seconds = cost.training_seconds(images, machine) if images else None
        row = [f"{gpus:,}", "–" if seconds is None else duration(seconds)]
        for link, bandwidth in LINKS.items():
            exchange = machine.exchange_seconds(gpus, cost.exchanged, bandwidth)
            cell = duration(exchange)
            if link == "NVLink" and gpus > A_MACHINE:
                cell = "–"
            elif seconds is not None:
                cell += f" ({exchange / seconds:.0%})"
            row.append(cell)
        rows.append(row)
    return table(["GPUs", f"arithmetic, {batch} images in all", *LINKS], rows)


def strong_table(model: Model, machine: Machine) -> str:
    cost, recipe = model.cost, model.recipe
    alone = cost.training_seconds(recipe.training.batch_size, machine)
    rows = []
    for gpus in (*GPUS[:3], recipe.training.batch_size, GPUS[3]):
        images = recipe.training.batch_size // gpus
        if not images:
            rows.append([f"{gpus:,}", "none for most", *["–"] * 5])
            continue
        seconds = cost.training_seconds(images, machine)
        times = _with_exchange(gpus, seconds, cost, machine)
        rows.append(
            [
                f"{gpus:,}",
                f"{images}",
                duration(seconds),
                f"{alone / seconds / gpus:.0%}",
                *(_run(recipe.iterations, time) for time in times),
            ]
        )
    head = ["GPUs", "images each", "arithmetic an iteration", "of ideal", *_run_heads()]
    return table(head, rows)


def weak_table(model: Model, machine: Machine) -> str:
    cost, recipe = model.cost, model.recipe
    share = recipe.training.batch_size // 8
    seen = recipe.iterations * recipe.training.batch_size
    rows = []
    for gpus in GPUS:
        seconds = cost.training_seconds(share, machine)
        times = _with_exchange(gpus, seconds, cost, machine)
        # Beyond one machine InfiniBand, within it NVLink.
        best = times[0] if times[0] is not None else times[1]
        assert best is not None
        rows.append(
            [
                f"{gpus:,}",
                f"{gpus * share:,}",
                *(_run(recipe.iterations, time) for time in times),
                duration(seen / (gpus * share) * best),
                f"{seen / (gpus * share):,.0f}",
                number(gpus * share / best * IMAGE_BYTES / 1e6),
            ]
        )
    head = ["GPUs", "batch", *_run_heads(), "as many images", "… in iterations", "data, MB/s"]
    return table(head, rows)


def _run_heads() -> list[str]:
    return [f"400,000 iterations, {link}" for link in LINKS]


def _with_exchange(gpus: int, seconds: float, cost: Cost, machine: Machine) -> list[float | None]:
    """An iteration's seconds by each link, where nothing of the exchange is hidden."""
    if gpus == 1:
        return [seconds] * len(LINKS)
    return [
        None
        if link == "NVLink" and gpus > A_MACHINE
        else seconds + machine.exchange_seconds(gpus, cost.exchanged, bandwidth)
        for link, bandwidth in LINKS.items()
    ]


def _run(iterations: int, seconds: float | None) -> str:
    return "–" if seconds is None else duration(iterations * seconds)


def sampling_table(found: list[Model], machine: Machine) -> str:
    head = ["model", "steps a level", "TFLOP an image", "images"]
    head += [f"{gpus:,} GPU{'s' * (gpus > 1)}" for gpus in GPUS]
    rows = []
    for m in found[:2]:
        for steps in (15, 5):
            for images in (50_000, 1_000_000):
                times = []
                for gpus in GPUS:
                    share = -(-images // gpus)
                    batches = -(-share // 256)
                    batch = -(-share // batches)
                    times.append(duration(batches * m.cost.sample_seconds(batch, machine, steps)))
                tera = number(m.cost.sample(steps) / 1e12)
                rows.append([m.name, f"{steps}", tera, f"{images:,}", *times])
    return table(head, rows)


def larger_table(found: list[Model], machine: Machine) -> str:
    head = ["model", "images a GPU and iteration", "400,000 iterations of 256 on 8 GPUs, NVLink",
            "exchange", "50,000 samples on 8 GPUs, as many at a time"]  # fmt: skip
    rows = []
    for m in found:
        share = m.recipe.training.batch_size // 8
        exchange = machine.exchange_seconds(8, m.cost.exchanged, LINKS["NVLink"])
        seconds = m.cost.training_seconds(share, machine) + exchange
        sampling = 50_000 / 8 / share * m.cost.sample_seconds(share, machine)
        rows.append(
            [
                m.name,
                f"{share}",
                duration(m.recipe.iterations * seconds),
                f"{exchange / seconds:.1%}",
                duration(sampling),
            ]
        )
    return table(head, rows)


def cpu_table(model: Model, results: list[dict[str, Any]]) -> str:
    """Measured: the newest time of the paper's gradient, and what follows for whole runs."""
    found = [
        (line, row)
        for line in results
        for row in line["rows"]
        if (row["group"], row["contender"]) == (CPU_GROUP, CPU_CONTENDER) and row["device"] == "cpu"
    ]
    if not found:
        return "Not measured yet."
    line, row = found[-1]
    rate = row["gradients"] / row["median"]
    cost, recipe = model.cost, model.recipe
    gradients_a_sample = cost.levels * cost.steps + 1
    chain = recipe.iterations * recipe.training.batch_size * cost.steps / rate
    rows = [
        ["gradients a second, measured", number(rate)],
        ["… times the network's FLOP", f"{number(rate * cost.gradient / 1e9)} GFLOP/s"],
        ["one sample, its gradients alone", duration(gradients_a_sample / rate)],
        ["50,000 samples", duration(50_000 * gradients_a_sample / rate)],
        ["400,000 iterations, their chains alone", duration(chain)],
    ]
    where = f"{line['processor']}, {line['threads']} threads"
    return table([f"{where}; {line['date'][:10]}, commit {line['commit'][:7]}", ""], rows)


def tables(
    machine: Machine, results: list[dict[str, Any]], found: list[Model] | None = None
) -> dict[str, str]:
    """All tables of the page by the names of their places."""
    found = models() if found is None else found
    return {
        "machine": machine_table(machine),
        "models": model_table(found),
        "exchange": exchange_table(found[0], machine),
        "strong": strong_table(found[0], machine),
        "weak": weak_table(found[0], machine),
        "sampling": sampling_table(found, machine),
        "memory": memory_table(found, machine),
        "larger": larger_table(found, machine),
        "cpu": cpu_table(found[0], results),
    }


def inserted(page: str, shown: dict[str, str]) -> str:
    """The page with each table between its markers."""
    for name, text in shown.items():
        page = between(page, f"<!-- table: {name} -->", f"<!-- end of {name} -->", text)
    return page


def main(arguments: list[str] | None = None) -> int:
    default = Machine()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, default=default.peak, help="FLOP/s of the GPU")
    parser.add_argument("--processors", type=int, default=default.processors)
    parser.add_argument("--memory", type=float, default=default.memory, help="bytes of the GPU")
    parser.add_argument(
        "--efficiency", type=float, default=default.efficiency, help="assumed share of the peak"
    )
    parser.add_argument(
        "--kernel-us", type=float, default=1e6 * default.kernel_seconds, help="least of a kernel"
    )
    parser.add_argument(
        "--hop-us", type=float, default=1e6 * default.hop_seconds, help="delay of a message"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    options = parser.parse_args(arguments)
    machine = Machine(
        peak=options.peak,
        processors=options.processors,
        memory=options.memory,
        efficiency=options.efficiency,
        kernel_seconds=1e-6 * options.kernel_us,
        hop_seconds=1e-6 * options.hop_us,
    )
    shown = tables(machine, lines(options.results))
    print("\n\n".join(shown.values()))
    if options.write:
        PAGE.write_text(inserted(PAGE.read_text(), shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
