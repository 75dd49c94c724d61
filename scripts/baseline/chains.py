"""The plain reference, timed whole or from a few steps a level: sampling and training.

A chain costs the same per Langevin step at every level, so its time is a + steps·b. Where the whole
would take too long it is timed with 1 and with 3 steps a level and extended along that line; every
figure says which.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch

from baseline.bench import Bench, Figure
from baseline.timing import SETTINGS, numerics, wall
from cdrl_fast import CDRL, NoiseSchedule, reference

FEW, MORE = 1, 3
# A whole run is timed rather than extended if all its repeats take at most this many seconds.
WHOLE_SECONDS = 5.0
# Of the matmul rate, what an eager network is taken to reach when its time is guessed beforehand.
GUESSED_SHARE = 0.3


def chain_flops(bench: Bench) -> int:
    """FLOPs of one image: every Langevin step, the denoising step, one proposal a level."""
    gradient, proposal = bench.work
    schedule = bench.model.schedule
    return (schedule.levels * schedule.steps + 1) * gradient + schedule.levels * proposal


def training_flops(bench: Bench) -> int:
    """FLOPs of one image of a batch: the chain, f⁺ and f⁻ and the proposal with their backwards."""
    gradient, proposal = bench.work
    # A value with input gradient is two forwards' worth; a forward with both gradients is three.
    return bench.model.schedule.steps * gradient + 2 * 3 * (gradient // 2) + 3 * proposal


def chains(bench: Bench) -> None:
    """`reference.sample` in eager mode."""
    per_step = bench.work[0] * bench.model.schedule.levels
    for setting, batch in bench.plan.chains:
        work = batch * per_step * (3 * FEW + MORE)
        run = partial(_chain, bench, setting, batch)
        bench.item(f"{setting} batch {batch}", run, need=_guess(bench, setting, work))


def trainings(bench: Bench) -> None:
    """`reference.training_iteration` in eager mode."""
    for setting, batch in bench.plan.trainings:
        work = batch * bench.work[0] * (3 * FEW + MORE + 9)
        run = partial(_training, bench, setting, batch)
        bench.item(f"{setting} batch {batch}", run, need=_guess(bench, setting, work))


def _guess(bench: Bench, setting: str, work: float) -> float:
    rate = bench.rates.get(SETTINGS[setting].rate)
    return 1.0 if rate is None else 1.0 + work / rate / GUESSED_SHARE


def _chain(bench: Bench, setting: str, batch: int) -> Figure:
    def run(steps: int) -> None:
        samples = reference.sample(bench.model, batch, steps=steps, noise="torch")
        if not samples.isfinite().all():
            raise AssertionError("the chain left the finite numbers")

    levels = bench.model.schedule.levels
    figure = _timed(bench, setting, run, bench.model.schedule.steps)
    share = bench.share(SETTINGS[setting].rate, batch * chain_flops(bench), figure["seconds"])
    step = figure.pop("seconds_per_added_step") / levels
    return {
        **figure,
        **share,
        "seconds_per_image": figure["seconds"] / batch,
        "seconds_per_langevin_step": step,
    }


def _training(bench: Bench, setting: str, batch: int) -> Figure:
    model = copy.deepcopy(bench.model).requires_grad_(True)
    initializer = model.initializer
    assert initializer is not None
    # The rates of the start of a warm-up: the same kernels, and weights that stay where they were.
    energy_optimizer = torch.optim.Adam(model.energy.parameters(), lr=1e-8)
    initializer_optimizer = torch.optim.AdamW(initializer.parameters(), lr=1e-8, weight_decay=0.0)
    x0 = torch.rand(batch, *model.sample_shape, device=bench.device) * 2 - 1

    def run(steps: int) -> None:
        losses = reference.training_iteration(
            _with_steps(model, steps),
            x0,
            None,
            energy_optimizer=energy_optimizer,
            initializer_optimizer=initializer_optimizer,
            noise="torch",
        )
        if not all(loss.isfinite() for loss in losses.values()):
            raise AssertionError("a loss left the finite numbers")

    figure = _timed(bench, setting, run, model.schedule.steps)
    share = bench.share(SETTINGS[setting].rate, batch * training_flops(bench), figure["seconds"])
    return {
        **figure,
        **share,
        "seconds_per_image": figure["seconds"] / batch,
        "seconds_per_langevin_step": figure.pop("seconds_per_added_step"),
    }


def _with_steps(model: CDRL, steps: int) -> CDRL:
    """The same networks under a schedule of ``steps`` steps a level, as training reads it there."""
    schedule = NoiseSchedule(**{**model.schedule.to_dict(), "steps": steps})
    return CDRL(model.energy, model.initializer, schedule)


def _timed(bench: Bench, setting: str, run: Callable[[int], None], steps: int) -> Figure:
    """Seconds of ``run(steps)``, whole or extended, with what was really timed beside it."""
    with numerics(setting) as flags:
        warm_up = wall(lambda: run(FEW), bench.device, 1)[0]
        few = wall(lambda: run(FEW), bench.device, 1)
        repeats = 3 if few[0] < 0.5 else 2 if few[0] < 1.5 else 1
        few += wall(lambda: run(FEW), bench.device, repeats - 1)
        more = wall(lambda: run(MORE), bench.device, repeats)
        added = (statistics.median(more) - statistics.median(few)) / (MORE - FEW)
        extended = statistics.median(few) + (steps - FEW) * added
        whole: list[float] = []
        if repeats * extended < min(WHOLE_SECONDS, bench.left()):
            whole = wall(lambda: run(steps), bench.device, repeats)
    how = f"median of {repeats} whole runs"
    if not whole:
        how = f"t({FEW}) + {steps - FEW}·(t({MORE}) - t({FEW}))/{MORE - FEW}, t(k): k steps a level"
    timed = {f"{FEW} steps": few, f"{MORE} steps": more, f"{steps} steps": whole}
    return {
        "seconds": statistics.median(whole) if whole else extended,
        "how": how,
        "timed": {name: times for name, times in timed.items() if times},
        "seconds_extended": extended,
        "seconds_per_added_step": added,
        "warm_up_seconds": warm_up,
        "timer": "host clock, device idle before and after",
        "flags": vars(flags),
    }
