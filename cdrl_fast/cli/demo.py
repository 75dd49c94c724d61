"""``cdrl-fast demo``: sample the shipped model, train a second one, write a page."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from cdrl_fast import metrics
from cdrl_fast.data import load_data
from cdrl_fast.evaluation.judge import evaluate
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.report import (
    Report,
    film_strip,
    save_image_grid,
    scatter_figure,
    training_report,
    versions,
)
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.training.recipe import load_recipe
from cdrl_fast.training.trainer import Trainer

GUIDANCE = 1.0


def run_demo(out: Path, iterations: int = 2000, samples: int = 300) -> Path:
    """Sample, train and write pictures and ``index.html`` into ``out``.

    Args:
        out: a folder; the files of an earlier demo are overwritten.
        iterations: training iterations of the second model, of 2-D points on a checkerboard.
        samples: number of digits per measured figure.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    page = Report(
        "cdrl_fast demo",
        "An energy-based model shipped with the package, and one trained while you waited.",
    )
    print("1/2  sampling digits from the shipped model")
    _digits(page, out, samples)
    print("2/2  training a model of a 2-D checkerboard from scratch")
    _checkerboard(page, out, iterations)
    page.section("Versions")
    page.table([{"Software": k, "Version": v} for k, v in versions().items()])
    path = out / "index.html"
    page.write(path)
    print(
        f"\nOpen {path.resolve()}\nPictures: {', '.join(sorted(p.name for p in out.glob('*.png')))}"
    )
    return path


def _digits(page: Report, out: Path, count: int) -> None:
    model = CDRL.from_pretrained("digits")
    recipe = load_recipe("digits")
    train, held_out = load_data(recipe.data).split(recipe.held_out)
    sampler = Sampler(model)
    label = torch.arange(100) // 10 + 1
    start = time.perf_counter()
    samples = sampler.sample(100, label=label, guidance=GUIDANCE, progress=True)
    timings = {"100 digits, 15 Langevin steps at each of 6 levels": time.perf_counter() - start}
    save_image_grid(samples, out / "digits.png", columns=10)
    label = torch.arange(10) + 1
    trace = sampler.sample_trace(10, trace="levels", label=label, guidance=GUIDANCE)
    states = list(trace.states)
    names = ["noise", *(f"level {t}" for t in range(6, 0, -1))]
    film_strip(states, labels=names).save(out / "digits-levels.png")
    start = time.perf_counter()
    figures = evaluate(model, train, held_out, samples=count, guidance=(0.0, GUIDANCE))
    timings[f"measuring quality ({3 * count} digits, one classifier)"] = time.perf_counter() - start
    training_report(
        None,
        samples=samples,
        trace_states=states,
        trace_labels=names,
        metrics=figures,
        timings=timings,
        title="Digits: the shipped model",
        subtitle=f"Ten samples per class, guidance {GUIDANCE:g}.",
        page=page,
    )
    accuracy = figures[f"accuracy_w{GUIDANCE:g}"]
    print(f"     {accuracy:.1%} recognised as the requested class (guidance {GUIDANCE:g})")


def _checkerboard(page: Report, out: Path, iterations: int) -> None:
    recipe = load_recipe("checkerboard-small")
    data = load_data(recipe.data)
    model = recipe.model.build(data, recipe.training.seed)
    trainer = Trainer(model, data, recipe.training)
    run = out / "run"
    shutil.rmtree(run, ignore_errors=True)
    trainer.fit(
        iterations,
        folder=run,
        progress=True,
        evaluate=lambda t: {"inside": evaluate(t.ema, data, None, samples=1000)["inside"]},
    )
    trace = Sampler(trainer.ema).sample_trace(2000, trace="levels")
    samples = trace.samples
    scatter_figure(samples, "2,000 samples").savefig(out / "checkerboard.png", dpi=100)
    inside, shares = metrics.checkerboard_shares(samples.numpy())
    figures = {
        "inside the squares": inside,
        "inside, uniform points": 0.5,
        "smallest square's share": float(shares.min()),
        "largest square's share": float(shares.max()),
    }
    training_report(
        run,
        samples=samples,
        trace_states=list(trace.states),
        metrics=figures,
        timings={f"training, {trainer.iteration} iterations": trainer.seconds},
        config=recipe.to_dict(),
        title="Checkerboard: trained just now",
        subtitle="Trained on 50,000 points in eight squares.",
        page=page,
    )
    print(f"     {inside:.1%} of the samples are inside the squares (chance: 50%)")
