"""What the sections share: time left, figures on disk, measured ceilings, the model."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cdrl_fast import CDRL, NoiseSchedule, ResNetEnergy, UNetInitializer
from cdrl_fast.networks.layers import static_weights
from cdrl_fast.reference import input_gradient

FULL_DEADLINE = 330.0
Figure = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Sizes of one run; the most telling first, since what comes last is what a deadline drops."""

    copy_bytes: tuple[int, ...] = tuple(2**k for k in range(16, 33, 2))
    matmul: tuple[int, ...] = (8192, 4096, 2048)
    sustained_seconds: float = 1.5
    convolution_batches: tuple[int, ...] = (512, 16, 128, 64, 256, 1, 4)
    convolution_seconds: float = 0.06
    chains: tuple[tuple[str, int], ...] = (
        ("defaults", 512),
        ("defaults", 16),
        ("defaults", 128),
        ("tf32", 512),
        ("tf32", 16),
        ("tf32", 128),
        ("fp32", 16),
        ("fp32", 128),
        ("fp32", 512),
    )
    trainings: tuple[tuple[str, int], ...] = (
        ("tf32", 256),
        ("tf32", 32),
        ("fp32", 32),
        ("fp32", 256),
    )
    afternoon_batches: tuple[int, ...] = (512, 16)
    image_size: int = 32
    energy: dict[str, Any] = field(default_factory=dict)
    initializer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)


FULL = Plan()
QUICK = Plan(
    copy_bytes=(2**12, 2**16),
    matmul=(64,),
    sustained_seconds=0.02,
    convolution_batches=(2, 1),
    convolution_seconds=0.002,
    chains=(("defaults", 2), ("tf32", 2), ("fp32", 2)),
    trainings=(("tf32", 2), ("fp32", 2)),
    afternoon_batches=(2,),
    image_size=8,
    energy={"width": 8, "multipliers": (1, 2), "blocks": 1},
    initializer={
        "image_size": 8,
        "width": 8,
        "multipliers": (1, 1),
        "blocks": 1,
        "attention": (4,),
    },
    schedule={"levels": 2, "steps": 4},
)


class Report:
    """The JSON file of results: rewritten whole, atomically, each time anything is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": 1, "sections": {}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        # A rename survives the kill of this process; a sync to disk for each of hundreds of
        # figures would only guard against the machine's own crash.
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        os.replace(temporary, self.path)

    def section(self, name: str) -> dict[str, Any]:
        fresh = {"status": "running", "figures": {}, "failed": {}, "skipped": []}
        section: dict[str, Any] = self.data["sections"].setdefault(name, fresh)
        return section


@dataclass(frozen=True)
class Section:
    """One thing to measure.

    Attributes:
        name: its key in the results.
        run: does it, recording figures through `Bench.item`.
        seconds: what earlier sections must leave for it, of `FULL_DEADLINE`.
    """

    name: str
    run: Callable[[Bench], None]
    seconds: float


@dataclass
class Bench:
    """State of one run.

    Attributes:
        deadline: seconds after ``started`` by which all must end.
        rates: best measured matrix rate by precision, in FLOP/s.
        copy_rate: best measured copy bandwidth out of cache, bytes read and written a second.
    """

    device: torch.device
    report: Report
    plan: Plan = FULL
    deadline: float = FULL_DEADLINE
    started: float = field(default_factory=time.monotonic)
    compile_mode: str = "max-autotune"
    rates: dict[str, float] = field(default_factory=dict)
    copy_rate: float | None = None
    section: str = ""
    section_end: float = math.inf

    def left(self) -> float:
        """Seconds left to the section under way."""
        return min(self.section_end, self.started + self.deadline) - time.monotonic()

    def item(self, name: str, measure: Callable[[], Figure], need: float = 0.5) -> Figure | None:
        """Measures one figure and writes it; a failure or a lack of time is written instead.

        Args:
            need: seconds it is thought to take.
        """
        section = self.report.section(self.section)
        if self.left() < need:
            section["skipped"].append(f"{name}: needs about {need:.1f} s, {self.left():.1f} s left")
            self.report.save()
            return None
        try:
            figure = measure()
            json.dumps(figure, allow_nan=False)
        except Exception as error:
            section["failed"][name] = describe(error)
            self.report.save()
            error.__traceback__ = None
            self.free()
            return None
        section["figures"][name] = figure
        self.report.save()
        return figure

    def free(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def l2_bytes(self) -> int:
        if self.device.type != "cuda":
            return 2**18
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    @cached_property
    def model(self) -> CDRL:
        """The plan's model on the device, in eval mode, with random weights throughout."""
        return build_model(self.plan).to(self.device)

    @cached_property
    def work(self) -> tuple[int, int]:
        """FLOPs of one image: the energy's value and input gradient; the initializer."""
        energy, initializer = self.model.energy, self.model.initializer
        y = torch.randn(1, *self.model.sample_shape, device=self.device)
        logsnr = torch.zeros(1, device=self.device)
        with FlopCounterMode(display=False) as gradient, static_weights(energy):
            # The counter's hooks on modules refuse a leaf as their input.
            input_gradient(lambda v: energy(v.clone(), logsnr), y)
        with FlopCounterMode(display=False) as proposal, torch.no_grad():
            assert initializer is not None
            initializer(y, logsnr)
        return gradient.get_total_flops(), proposal.get_total_flops()

    def share(self, rate: str, flops: float, seconds: float) -> Figure:
        """How near ``seconds`` comes to the measured matrix rate; None where that is missing."""
        ceiling = self.rates.get(rate)
        return {
            "flops": flops,
            "flops_per_second": flops / seconds,
            "matmul_rate": rate,
            "share_of_matmul": None if ceiling is None else flops / seconds / ceiling,
        }


def build_model(plan: Plan) -> CDRL:
    torch.manual_seed(0)
    initializer = UNetInitializer(**plan.initializer)
    model = CDRL(ResNetEnergy(**plan.energy), initializer, NoiseSchedule(**plan.schedule)).eval()
    # Products with zeros draw less power and so run faster than those of a trained network.
    with torch.no_grad():
        for weight in initializer.parameters():
            if weight.dim() > 1 and not weight.any():
                weight.normal_(std=0.02)
    return model.requires_grad_(False)


def describe(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {str(error)[:600]}{where}"


def run_sections(
    bench: Bench,
    sections: Sequence[Section],
    after: Callable[[Bench], Figure] | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Runs the sections in order; whatever one does, the next follows if there is time.

    Args:
        after: read after each section and kept with it, as clocks and temperature are.
    """
    scale = min(1.0, bench.deadline / FULL_DEADLINE)
    for index, section in enumerate(sections):
        reserve = scale * sum(later.seconds for later in sections[index + 1 :])
        bench.section, bench.section_end = section.name, bench.started + bench.deadline - reserve
        record, start = bench.report.section(section.name), time.monotonic()
        if bench.left() <= 0:
            record.update(status="skipped", reason="no time left before the deadline")
        else:
            bench.report.save()
            _run(bench, section, record)
            if after is not None:
                record["device_after"] = after(bench)
        record["wall_seconds"] = round(time.monotonic() - start, 3)
        bench.report.save()
        log(f"[{time.monotonic() - bench.started:6.1f} s] {section.name}: {record['status']}")


def _run(bench: Bench, section: Section, record: dict[str, Any]) -> None:
    try:
        section.run(bench)
    except Exception as error:
        record.update(status="failed", error=describe(error))
        error.__traceback__ = None
    else:
        lost = "failed" if record["failed"] else "skipped" if record["skipped"] else ""
        record["status"] = "done" if not lost else "partial" if record["figures"] else lost
    bench.free()
