"""Cases of `langevin` and of the noise that all chains draw."""

from __future__ import annotations

import copy
from functools import partial

import torch
from library import Cases, Result, small_network
from torch import Tensor, nn

import cdrl_fast
from cdrl_fast import langevin, normal


def ring(x: Tensor) -> Tensor:
    """Return the log-density of a ring of radius 2."""
    return -4.0 * (x.norm(dim=1) - 2.0) ** 2


def langevin_cases() -> Cases:
    """Yield chains: by the compiled program (float32 networks), autograd and Metropolis tests."""
    for dtype in (torch.float32, torch.float64):
        yield f"normal, {dtype}", partial(normal, (5, 7), seed=1, draw=2, dtype=dtype)
    torch.manual_seed(1)
    layers = nn.Linear(2, 33), nn.Tanh(), nn.Linear(33, 40), nn.LeakyReLU(0.1), nn.Linear(40, 1)
    deep = nn.Sequential(*layers, nn.Flatten(0))
    points = 2.0 * normal((301, 2), seed=3, draw=0)

    def traced_chain(run: partial[Tensor]) -> Result:
        if hasattr(cdrl_fast, "langevin_trace"):
            states = cdrl_fast.langevin_trace(*run.args, **run.keywords)
            return {"last": states[-1], "states": states}
        return dict(zip(("last", "states"), run(trace=True), strict=True))

    for name, density in {"network": small_network(), "deep network": deep, "ring": ring}.items():
        for x in (points, points.double()):
            function = density
            if isinstance(density, nn.Module):
                function = copy.deepcopy(density).to(x.dtype)
            run = partial(langevin, function, x, steps=40, step_size=0.02)
            # Long steps, so that some are refused.
            tested = partial(run, step_size=0.5, metropolis=True)
            for case, chain in {"": run, ", metropolis": tested}.items():
                title = f"langevin, {name}, {x.dtype}{case}"
                yield title, chain
                yield f"{title}, continued", partial(chain, first_step=40, first_sample=11)
                yield f"{title}, trace", partial(traced_chain, chain)
