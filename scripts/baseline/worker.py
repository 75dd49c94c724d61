"""The compiling process of the afternoon's section: job after job, each figure on disk."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch

from baseline.afternoon import Chain
from baseline.bench import FULL, QUICK, Bench, Figure, Report, describe
from baseline.timing import measure, numerics, synchronize


def work(task: dict[str, Any]) -> None:
    """Runs ``task["jobs"]``, (precision, batch) pairs, writing a figure or an error for each."""
    # Should the parent be killed, nothing else would end a process that compiles for minutes.
    timer = threading.Timer(task["seconds"] + 5.0, os._exit, args=(3,))
    timer.daemon = True
    timer.start()
    device, out = torch.device(task["device"]), Path(task["out"])
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    report = Report(out.with_name("worker.json"))
    bench = Bench(device, report, QUICK if task["quick"] else FULL, compile_mode=task["mode"])
    found: dict[str, Figure] = {}
    for kind, batch in task["jobs"]:
        try:
            figure = _job(bench, kind, batch)
        except Exception as error:
            figure = {"error": describe(error)}
            error.__traceback__ = None
        found[f"{kind} batch {batch}"] = figure
        temporary = out.with_name("figures.tmp")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, out)
        torch._dynamo.reset()
        gc.collect()
        bench.free()


def _job(bench: Bench, kind: str, batch: int) -> Figure:
    chain = Chain(bench, kind, batch)
    if bench.device.type == "cuda":
        call = torch.compile(chain.value, mode=bench.compile_mode, dynamic=False)
    else:
        call = torch.compile(chain.value, backend="aot_eager", dynamic=False)

    def value(y: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        # Each step's results are used up before the next one begins, so graphs may reuse memory.
        torch.compiler.cudagraph_mark_step_begin()
        result: torch.Tensor = call(y, logsnr)
        return result

    with numerics("tf32"):
        start = time.monotonic()
        chain.gradient(value, chain.x)
        synchronize(bench.device)
        seconds = time.monotonic() - start
        figure = chain.figure(value, compile_seconds=seconds)
        gradient = measure(
            lambda _: chain.gradient(value, chain.x),
            bench.device,
            seconds=0.5,
            at_most=30,
            graph=False,
        )
    return figure | {"gradient_seconds": gradient.seconds}
