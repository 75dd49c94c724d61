"""Pages about a model, a training run or an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.report import Report, training_report
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.sampler import Sampler
from cdrl_fast.training.recipe import recipe_of_run
from cdrl_fast.training.run_folder import LOG

PAGE = "report.html"
IMAGES, POINTS = 60, 1000


def model_page(
    model: CDRL,
    *,
    title: str,
    run: Path | None = None,
    metrics: dict[str, Any] | None = None,
    steps: Any = None,
) -> Report:
    """Draw samples and assemble the page about a model.

    The page shows the samples and their chains, the curves and the recipe of a training run, and
    figures of quality.

    Args:
        model: the model, which draws 60 images or 1,000 points, cycled over its classes.
        title: the heading of the page.
        run: folder of the training run; None for a page without curves and recipe.
        metrics: figures by name, as `evaluate` returns them.
        steps: as in `Sampler.sample`.

    Raises:
        ImportError: there are curves or points to plot, and matplotlib is not installed.
    """
    n = IMAGES if model.is_image else POINTS
    trace = Sampler(model).sample_trace(n, label=cycled_classes(model, n), steps=steps)
    levels = model.schedule.levels
    return training_report(
        run if run is not None and (run / LOG).is_file() else None,
        samples=trace.samples.cpu(),
        trace_states=[state.cpu() for state in trace.states],
        trace_labels=["noise", *(f"level {t}" for t in range(levels, 0, -1))],
        metrics=metrics,
        config=None if run is None else recipe_of_run(run),
        title=title,
        subtitle="Samples of the averaged weights, cycled over the classes."
        if model.num_classes
        else "Samples of the averaged weights.",
    )
