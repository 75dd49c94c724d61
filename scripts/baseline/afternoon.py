"""What a good engineer would write in an afternoon.

Frozen parameters with spectral norm folded in, channels-last, autocast to half precision (weights
stored in it, which is what autocast would cast them to each time), cuDNN's algorithm search, an
eager Langevin update in float32; then the same with the network compiled.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cdrl_fast.bench import folded
from torch import Tensor

from baseline.bench import QUICK, Bench, Figure
from baseline.chains import chain_flops
from baseline.timing import DTYPES, measure, numerics
from cdrl_fast.networks.layers import static_weights
from cdrl_fast.reference import input_gradient

KINDS = ("bf16", "fp16")
SCRIPT = Path(__file__).resolve().parents[1] / "gpu_baseline.py"
Value = Callable[[Tensor, Tensor], Tensor]


class Chain:
    """One Langevin step of the afternoon's sampler on a state of its own."""

    def __init__(self, bench: Bench, kind: str, batch: int) -> None:
        self.bench, self.dtype, device = bench, DTYPES[kind], bench.device
        network = folded(bench.model.energy)
        # Gains included: a float32 gain would turn the residual stream to float32.
        self.network = network.to(dtype=self.dtype, memory_format=torch.channels_last)
        self.level = bench.model.schedule.level(1 + bench.model.schedule.levels // 2)
        self.logsnr = torch.full((1,), self.level.logsnr, device=device)
        # The same state whatever ran before: the error reported below depends on it.
        torch.manual_seed(batch)
        x = torch.randn(batch, *bench.model.sample_shape, device=device)
        self.x = x.to(memory_format=torch.channels_last)
        self.y = self.x.clone()

    def value(self, y: Tensor, logsnr: Tensor) -> Tensor:
        with torch.autocast(y.device.type, self.dtype):
            result: Tensor = self.network(y, logsnr)
        return result

    def gradient(self, value: Value, y: Tensor) -> Tensor:
        y = y.detach().requires_grad_(True)
        v = value(y, self.logsnr)
        return torch.autograd.grad(v, y, torch.ones_like(v))[0]

    def step(self, value: Value) -> None:
        level, y = self.level, self.y
        y = y + level.drift * self.gradient(value, y) - level.pull * (y - self.x)
        self.y = y + level.noise_std * torch.randn_like(y)

    def error(self, value: Value) -> float:
        """Relative error of the input gradient of up to 16 samples, against float32."""
        energy = self.bench.model.energy
        few = self.x[:16].contiguous()
        with numerics("fp32"), static_weights(energy):
            exact = input_gradient(lambda v: energy(v, self.logsnr), few)
        error = (self.gradient(value, self.x)[:16].float() - exact).norm() / exact.norm()
        # Rounding flips signs of activations, in a tiny network many; a wrong gradient errs by 1.
        if not error < 0.9:
            raise AssertionError(f"relative error {float(error):.2e} of the input gradient")
        return float(error)

    def figure(self, value: Value, **more: Any) -> Figure:
        error = self.error(value)
        timing = measure(
            lambda _: self.step(value), self.bench.device, seconds=1.0, at_most=30, graph=False
        )
        if not self.y.isfinite().all():
            raise AssertionError("the chain left the finite numbers")
        return timing.figure(gradient_relative_error=error, **more)


def eager(bench: Bench) -> None:
    """The afternoon's chain as it is before compilation."""
    for batch in bench.plan.afternoon_batches:
        for kind in KINDS:
            bench.item(f"{kind} batch {batch} proposal", partial(_proposal, bench, kind, batch))
        for kind in KINDS:
            bench.item(
                f"{kind} batch {batch}",
                partial(_eager, bench, kind, batch),
                need=4.0 if bench.plan is not QUICK else 0.5,
            )


def _proposal(bench: Bench, kind: str, batch: int) -> Figure:
    network = copy.deepcopy(bench.model.initializer).to(memory_format=torch.channels_last)
    x = torch.randn(batch, *bench.model.sample_shape, device=bench.device)
    x = x.to(memory_format=torch.channels_last)
    logsnr = torch.zeros(1, device=bench.device)

    @torch.no_grad()
    def call(_: int) -> None:
        with torch.autocast(bench.device.type, DTYPES[kind]):
            network(x, logsnr)

    with numerics("tf32"):
        timing = measure(call, bench.device, seconds=0.2, at_most=30, graph=False)
    return timing.figure(**bench.share(kind, batch * bench.work[1], timing.seconds))


def _eager(bench: Bench, kind: str, batch: int) -> Figure:
    chain = Chain(bench, kind, batch)
    with numerics("tf32"):
        figure = chain.figure(chain.value)
    return figure | whole_chain(bench, kind, batch, figure)


def whole_chain(bench: Bench, kind: str, batch: int, step: Figure) -> Figure:
    """A whole chain's time put together from one step and one (uncompiled) proposal."""
    schedule = bench.model.schedule
    proposals = bench.report.section("afternoon")["figures"]
    proposal = proposals.get(f"{kind} batch {batch} proposal", {}).get("seconds")
    gradients = schedule.levels * schedule.steps + 1
    seconds = gradients * step["seconds"] + schedule.levels * (proposal or 0.0)
    return {
        "chain_seconds": seconds,
        "seconds_per_image": seconds / batch,
        "how": f"{gradients} × the median step (value, input gradient, update), "
        + (f"{schedule.levels} × the proposal" if proposal else "proposals not counted"),
        **bench.share(kind, batch * chain_flops(bench), seconds),
    }


def compiled(bench: Bench) -> None:
    """The same, compiled, in a process of its own that is stopped when time runs out."""
    jobs = [(kind, batch) for batch in bench.plan.afternoon_batches for kind in KINDS]
    waiting = {f"{kind} batch {batch}": (kind, batch) for kind, batch in jobs}
    section = bench.report.section("compiled")
    section["mode"] = bench.compile_mode if bench.device.type == "cuda" else "aot_eager"
    bench.free()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "figures.json", Path(folder) / "log"
        task = {
            "jobs": jobs,
            "device": str(bench.device),
            "quick": bench.plan is QUICK,
            "mode": bench.compile_mode,
            "seconds": bench.left(),
            "out": str(out),
        }
        with log.open("wb") as stream:
            command = [sys.executable, str(SCRIPT), "--compile-worker", json.dumps(task)]
            worker = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                _collect(bench, worker, out, waiting)
            finally:
                stopped = _stop(worker)
        why = "stopped at the deadline" if stopped else f"worker ended: {worker.returncode}"
        tail = log.read_text(errors="replace")[-1500:]
    for name in waiting:
        lost = f"{why}, before this was measured; its last words: {tail}"
        if stopped:
            section["skipped"].append(f"{name}: {lost}")
        else:
            section["failed"][name] = lost


def _collect(
    bench: Bench,
    worker: subprocess.Popen[bytes],
    out: Path,
    waiting: dict[str, tuple[str, int]],
) -> None:
    """Takes over each figure as soon as the worker has written it."""
    # The worker's figures must be read, and the table printed, before the deadline itself.
    while waiting and bench.left() > 3.0:
        ended = worker.poll() is not None
        found = json.loads(out.read_text()) if out.exists() else {}
        for name in [name for name in waiting if name in found]:
            kind, batch = waiting.pop(name)
            bench.item(name, partial(_take, bench, kind, batch, found[name]), need=-math.inf)
        if ended:
            return
        time.sleep(0.2)


def _take(bench: Bench, kind: str, batch: int, figure: Figure) -> Figure:
    if "error" in figure:
        raise RuntimeError(figure["error"])
    return figure | whole_chain(bench, kind, batch, figure)


def _stop(worker: subprocess.Popen[bytes]) -> bool:
    """Ends the worker's process group; whether it was still running."""
    running = worker.poll() is None
    if running:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    return running
