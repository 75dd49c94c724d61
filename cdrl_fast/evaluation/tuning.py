"""Fewer steps, better spent: a step plan fitted to a trained model's samples."""

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
from cdrl_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from cdrl_fast.data import Dataset
    from cdrl_fast.metrics import FeatureExtractor

Distances = tuple[float, float]
Move = Callable[[StepPlan], StepPlan | None]

# The factor that multipliers are first moved by, and the one below which moving stops.
FIRST, LAST = 1.3, 1.05


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
    """Spreads a budget of Langevin steps over the levels so that samples come close to the data.

    Starts from the rule h² = K/K' with the budget spread evenly, and moves, one at a time, all step
    multipliers, one level's multiplier, or a step from one level to another (each level keeping
    h² times its number of steps). A move stays where it brings samples closer to the data with
    one seed's noise and, for what could be that noise's accident, with a second one's, too. All
    plans are compared on the same noise. When no move helps, multipliers move by less, from a
    factor of 1.3 to 1.05.

    The distance is the Fréchet distance in a classifier's features for images, classes in turn,
    and the sliced Wasserstein distance for points.

    Args:
        model: a trained model; it is not changed. ``model.step_plan = plan`` makes the result what
            ``steps="tuned"`` stands for, and `CDRL.save_pretrained` keeps it.
        data: what the model was trained on.
        budget: Langevin steps of all levels together, at least one a level.
        samples: how many samples are drawn with each of the two seeds to judge a plan.
        guidance: as in `Sampler.sample`; the plan fits this weight.
        seed: of the search, which also uses ``seed + 1``. Judge the plan by others.
        max_seconds: the search stops then with the best plan so far.
        extractor: the network whose features of images are compared; by default a classifier
            trained on ``data``, which needs labels.
        progress: show a progress bar with the distance on both seeds.

    Returns:
        A plan of at most ``budget`` steps, at no greater distance than the rule's on either seed.
        Without a cap on time equal arguments give equal plans on one machine.

    Raises:
        ValueError: a budget below one step a level, too few samples, or a ``max_seconds`` that is
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
            f"budget: expected at least {levels}, a step for each level, got {budget}; it counts "
            "the steps of all levels together"
        )
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, got {samples}; some hundreds are better")
    if not max_seconds > 0:
        raise ValueError(f"max_seconds: expected a positive number, got {max_seconds}")
    sampler, judge = Sampler(model), Judge(data, extractor)
    label = cycled_classes(model, samples)

    def distance(plan: StepPlan, noise: int) -> float:
        try:
            drawn = sampler.sample(
                samples,
                seed=seed + noise,
                steps=plan,
                label=label,
                guidance=guidance,
                batch_size=BATCH,
            )
        except ChainDiverged:
            return math.inf
        return judge.distance(drawn.cpu())

    even = [budget // levels + (t < budget % levels) for t in range(levels)]
    with progress_bar(progress, desc="tuning", unit="plan") as bar:

        def tried(best: Distances) -> None:
            bar.set_postfix_str(f"distance {best[0]:.4g}, {best[1]:.4g}", refresh=False)
            bar.update()

        deadline = time.monotonic() + max_seconds
        return _Search(model.schedule.plan(even), distance, deadline, tried).run()


class _Search:
    """The best plan so far and its distances on both seeds.

    Args:
        start: the first plan.
        distance: of a plan's samples from the data, with the first (0) or the second (1) noise.
        deadline: by ``time.monotonic``.
        tried: called after each plan with the best distances.
    """

    def __init__(
        self,
        start: StepPlan,
        distance: Callable[[StepPlan, int], float],
        deadline: float,
        tried: Callable[[Distances], None],
    ) -> None:
        self.plan, self._distance, self._deadline, self._tried = start, distance, deadline, tried
        self.distances: Distances = (distance(start, 0), distance(start, 1))
        self._seen = {start}
        tried(self.distances)

    def run(self) -> StepPlan:
        """Rounds of moves until none helps or time is up; steps move when no multiplier does."""
        levels, factor = len(self.plan.counts), FIRST
        shifts = [partial(_shifted, a, b) for a, b in permutations(range(levels), 2)]
        while factor >= LAST and not self._late():
            if not (self._helps(_scalings(levels, factor)) or self._helps(shifts)):
                factor = math.sqrt(factor)
        return self.plan

    def _helps(self, moves: Sequence[Move]) -> bool:
        """Makes each move as often as it helps."""
        before = self.plan
        for move in moves:
            while (moved := move(self.plan)) is not None and self._accepts(moved):
                pass
        return self.plan != before

    def _accepts(self, plan: StepPlan) -> bool:
        if plan in self._seen or self._late():
            return False
        self._seen.add(plan)
        first = self._distance(plan, 0)
        better = first < self.distances[0]
        if better:
            second = self._distance(plan, 1)
            better = second < self.distances[1]
            if better:
                self.plan, self.distances = plan, (first, second)
        self._tried(self.distances)
        return better

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline


def _scalings(levels: int, factor: float) -> list[Move]:
    """All multipliers up and down, then each level's."""
    groups = [range(levels), *(range(t, t + 1) for t in range(levels))]
    return [partial(_scaled, group, by) for group in groups for by in (factor, 1 / factor)]


def _scaled(levels: range, by: float, plan: StepPlan) -> StepPlan:
    changed = [h * by if t in levels else h for t, h in enumerate(plan.multipliers)]
    return _plan(plan.counts, changed)


def _shifted(giver: int, taker: int, plan: StepPlan) -> StepPlan | None:
    """A step moved from level to level; None where there is but one."""
    counts, multipliers = list(plan.counts), list(plan.multipliers)
    if counts[giver] == 1:
        return None
    counts[giver] -= 1
    counts[taker] += 1
    for t in (giver, taker):
        multipliers[t] *= math.sqrt(plan.counts[t] / counts[t])
    return _plan(counts, multipliers)


def _plan(counts: Sequence[int], multipliers: Sequence[float]) -> StepPlan:
    """Rounded, so that a way there and back ends at the same plan, which is not tried twice."""
    return StepPlan(tuple(counts), tuple(round(h, 4) for h in multipliers))
