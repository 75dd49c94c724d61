"""Step plans tuned to a trained model: the best use of a budget of Langevin steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING

from cdrl_fast._lazy import progress_bar
from cdrl_fast.errors import ChainDiverged
from cdrl_fast.evaluation.judge import BATCH, Judge
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.model.schedule import StepPlan
from cdrl_fast.sampling.label_terms import cycled_classes
from cdrl_fast.sampling.request import SampleOptions
from cdrl_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from cdrl_fast.data import Dataset
    from cdrl_fast.metrics import FeatureExtractor

Distances = tuple[float, float]
Move = Callable[[StepPlan], StepPlan | None]

FIRST_FACTOR, LAST_FACTOR = 1.3, 1.05
"""Factor by which multipliers are changed first, and the one below which the search ends."""


def tune_steps(
    model: CDRL,
    data: Dataset,
    *,
    budget: int,
    samples: int = 500,
    guidance: float = 0.0,
    seed: int = 10_000,
    max_seconds: float = 600.0,
    extractor: FeatureExtractor | None = None,
    progress: bool = False,
) -> StepPlan:
    """Search the step plan, for a budget of Langevin steps, whose samples are closest to the data.

    The search starts with the budget spread evenly over the levels and step multipliers by the
    rule h² = K/K'. Each move scales all multipliers or one level's, or shifts one step from a level
    to another, where h² times the number of steps stays the same. A move is accepted if it
    reduces the distance for two seeds of noise: the second seed rejects moves that only fit the
    first. All plans are compared on the same noise. When no move helps, the factor of the
    multipliers shrinks, from 1.3 down to 1.05.

    For images, the distance is the Fréchet distance in a classifier's features, of samples cycled
    over the classes; for points, it is the sliced Wasserstein distance.

    Args:
        model: a trained model; it is not changed. Set ``model.step_plan = plan`` to use the plan
            with ``steps="tuned"`` and to save it by `CDRL.save_pretrained`.
        data: the model's training data.
        budget: Langevin steps of all levels together, at least one per level.
        samples: number of samples per plan and seed.
        guidance: weight of classifier-free guidance that the plan is tuned for, as in
            `Sampler.sample`.
        seed: first seed of the search, which also uses ``seed + 1``; evaluate the plan with others.
        max_seconds: time limit of the search, which returns the best plan so far.
        extractor: the network whose features of images are compared; by default a classifier
            trained on ``data``, which must have labels.
        progress: show a progress bar with the distance for both seeds.

    Returns:
        A plan of at most ``budget`` steps, whose distance is at most the starting plan's for both
        seeds. If time does not limit the search, equal arguments give equal plans on one machine.

    Raises:
        ValueError: ``budget`` is below one step per level, ``samples`` below 2, or ``max_seconds``
            not positive.
        DataError: images without labels and no ``extractor``.

    Examples:
        >>> from cdrl_fast import CDRL, tune_steps
        >>> from cdrl_fast.data import load_data
        >>> model = CDRL.from_pretrained("digits")
        >>> model.step_plan = tune_steps(model, load_data("digits"), budget=30)  # doctest: +SKIP
    """
    levels = model.schedule.levels
    if budget < levels:
        raise ValueError(
            f"budget: expected at least {levels}, one step per level, got {budget}; it counts the "
            "steps of all levels together"
        )
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}; some hundreds are better")
    if not max_seconds > 0:
        raise ValueError(f"max_seconds: expected a positive number, got {max_seconds}")
    sampler, judge = Sampler(model), Judge(data, extractor)
    options: SampleOptions = {
        "label": cycled_classes(model, samples), "guidance": guidance, "batch_size": BATCH,
    }  # fmt: skip

    def distance(plan: StepPlan, noise: int) -> float:
        try:
            trial: SampleOptions = {**options, "seed": seed + noise, "steps": plan}
            drawn = sampler.sample(samples, **trial)
        except ChainDiverged:
            return math.inf
        return judge.distance(drawn.cpu())

    even = [budget // levels + (t < budget % levels) for t in range(levels)]
    with progress_bar(progress, desc="tuning", unit="plan") as bar:

        def show(best: Distances) -> None:
            bar.set_postfix_str(f"distance {best[0]:.4g}, {best[1]:.4g}", refresh=False)
            bar.update()

        deadline = time.monotonic() + max_seconds
        return _Search(model.schedule.plan(even), distance, deadline, show).run()


class _Search:
    """State of the search: the best plan so far and its distances for both seeds.

    Args:
        start: the first plan.
        distance: returns the distance between a plan's samples and the data, for the noise of the
            first seed (0) or the second (1).
        deadline: end of the search, by ``time.monotonic``.
        show: called after each plan with the best distances.
    """

    def __init__(
        self,
        start: StepPlan,
        distance: Callable[[StepPlan, int], float],
        deadline: float,
        show: Callable[[Distances], None],
    ) -> None:
        self.plan, self._distance, self._deadline, self._show = start, distance, deadline, show
        self.distances: Distances = (distance(start, 0), distance(start, 1))
        self._seen = {start}
        show(self.distances)

    def run(self) -> StepPlan:
        """Try moves until none helps or time is up; shift steps only if no scaling helps."""
        levels, factor = len(self.plan.counts), FIRST_FACTOR
        shifts = [partial(_shifted, a, b) for a, b in permutations(range(levels), 2)]
        while factor >= LAST_FACTOR and not self._is_late():
            if not (self._helps(_scalings(levels, factor)) or self._helps(shifts)):
                factor = math.sqrt(factor)
        return self.plan

    def _helps(self, moves: Sequence[Move]) -> bool:
        """Repeat each move as long as it is accepted; return whether the plan has changed."""
        before = self.plan
        for move in moves:
            while (moved := move(self.plan)) is not None and self._accepts(moved):
                pass
        return self.plan != before

    def _accepts(self, plan: StepPlan) -> bool:
        if plan in self._seen or self._is_late():
            return False
        self._seen.add(plan)
        first = self._distance(plan, 0)
        better = first < self.distances[0]
        if better:
            second = self._distance(plan, 1)
            better = second < self.distances[1]
            if better:
                self.plan, self.distances = plan, (first, second)
        self._show(self.distances)
        return better

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline


def _scalings(levels: int, factor: float) -> list[Move]:
    """Return the moves that scale all multipliers up and down, then those of each level."""
    groups = [range(levels), *(range(t, t + 1) for t in range(levels))]
    return [partial(_scaled, group, scale) for group in groups for scale in (factor, 1 / factor)]


def _scaled(levels: range, scale: float, plan: StepPlan) -> StepPlan:
    multipliers = [h * scale if t in levels else h for t, h in enumerate(plan.multipliers)]
    return _rounded_plan(plan.counts, multipliers)


def _shifted(source: int, target: int, plan: StepPlan) -> StepPlan | None:
    """Return the plan with one step shifted between levels; None if the source has only one."""
    counts, multipliers = list(plan.counts), list(plan.multipliers)
    if counts[source] == 1:
        return None
    counts[source] -= 1
    counts[target] += 1
    for t in (source, target):
        multipliers[t] *= math.sqrt(plan.counts[t] / counts[t])
    return _rounded_plan(counts, multipliers)


def _rounded_plan(counts: Sequence[int], multipliers: Sequence[float]) -> StepPlan:
    """Return a plan with rounded multipliers, so that opposite moves give the same plan again."""
    return StepPlan(tuple(counts), tuple(round(h, 4) for h in multipliers))
