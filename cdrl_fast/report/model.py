"""The page about a model, a run or an evaluation: what `cdrl_fast.report` needs, put together."""

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
    """Samples with their chains; of a run its curves and recipe; figures where there are any.

    Args:
        model: draws 60 images, or 1,000 points, classes in turn.
        run: a training run's folder.
        metrics: figures by name, as `evaluate` gives them.
        steps: as in `Sampler.sample`.

    Raises:
        ImportError: matplotlib is not installed and there is something to plot.
    """
    n = IMAGES if model.is_image else POINTS
    samples, trace = Sampler(model).sample(
        n, label=cycled_classes(model, n), steps=steps, trace="levels"
    )
    levels = model.schedule.levels
    return training_report(
        run if run is not None and (run / LOG).is_file() else None,
        samples=samples.cpu(),
        trace_states=[state.cpu() for state in trace.states],
        trace_labels=["noise", *(f"level {t}" for t in range(levels, 0, -1))],
        metrics=metrics,
        config=None if run is None else recipe_of_run(run),
        title=title,
        subtitle="Drawn by the averaged weights, classes in turn."
        if model.num_classes
        else "Drawn by the averaged weights.",
    )
