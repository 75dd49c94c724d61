"""Cases of `Sampler`: each shipped model in each precision, combinations, other networks."""

from __future__ import annotations

import copy
from functools import partial

import torch
from library import Cases, Result, conditional, traced
from torch import Tensor, nn

from cdrl_fast import (
    CDRL,
    Density,
    Sampler,
    StepPlan,
    guided,
    langevin,
    mixture,
    negated,
    normal,
    product,
    tempered,
)

MODELS = {"digits": 9, "fashion-mnist": 3, "checkerboard": 51}
"""Shipped models and the samples per case; odd, so that tiles and batches are not all full."""


class OwnEnergy(nn.Module):
    """A user's energy, whose gradient the library takes by autograd."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return self.energy(x, logsnr, label)


def sampler_cases() -> Cases:
    """Yield the cases of shipped models: sampling, inpainting, scoring, combinations."""
    for name, n in MODELS.items():
        model = CDRL.from_pretrained(name)
        for precision in ("auto", "fp32", "fp64"):
            sampler = Sampler(model, precision=precision)
            for part in (sampling, traces, inpainting, scoring):
                for case, function in part(sampler, n, precision):
                    yield f"{name}, {precision}, {case}", function
        for part in (combinations, other_networks, densities):
            for case, function in part(model, n):
                yield f"{name}, {case}", function


def conditions(model: CDRL) -> dict[str, object]:
    """Return a label with guidance, where the model has labels."""
    return {"label": model.classes[7], "guidance": 1.0} if model.num_classes else {}


def observed(model: CDRL) -> tuple[Tensor, Tensor]:
    """Return two samples, and the mask of the half that is known."""
    size = model.sample_shape[-1]
    x = normal((2, *model.sample_shape), seed=5, draw=0).clamp(-1, 1)
    return x, torch.arange(size) < size // 2


def sampling(sampler: Sampler, n: int, precision: str) -> Cases:
    model, draw = sampler.model, partial(sampler.sample, n)
    options = {
        "as trained": {},
        "1 step": {"steps": 1},
        "steps of each level": {"steps": (3, 1, 2, 1, 2, 3)},
        "step plan": {"steps": StepPlan((2,) * 6, (1.5, 1.0, 2.0, 1.0, 1.25, 1.0))},
        "other noise": {"steps": 2, "seed": 2**63 + 1, "first_sample": 2**40},
        "batches": {"steps": 2, "batch_size": n - 1},
        "correctors": {"steps": 2, "correctors": 2},
        "denoise_scale": {"steps": 2, "denoise_scale": 2.0},
    }
    if model.step_plan is not None:
        options["tuned steps"] = {"steps": "tuned"}
    if model.num_classes:
        options["label"] = {"steps": 2, "label": model.classes[3]}
        options["labels"] = {"steps": 2, "label": [model.classes[i % 4] for i in range(n)]}
        options["guidance"] = {"steps": 2, **conditions(model)}
    several = {"steps": 2, "batch_size": n - 1, "correctors": 1, **conditions(model)}
    options["several options"] = several
    if precision != "auto":
        options["metropolis"] = {"steps": 2, "metropolis": True}
        options["metropolis, several options"] = {"metropolis": True, **several}
    for case, values in options.items():
        yield case, partial(draw, **values)
    yield "one sample", partial(sampler.sample, 1, steps=2)


def traces(sampler: Sampler, n: int, precision: str) -> Cases:
    several = {"batch_size": n - 1, "correctors": 1, **conditions(sampler.model)}
    for kind in ("levels", "steps"):
        draw = partial(traced, sampler, n, kind, steps=2)
        yield f"trace of {kind}", draw
        yield f"trace of {kind}, several options", partial(draw, **several)
        if precision != "auto":
            yield f"trace of {kind}, metropolis", partial(draw, metropolis=True, **several)


def inpainting(sampler: Sampler, n: int, precision: str) -> Cases:
    draw = partial(sampler.inpaint, *observed(sampler.model), steps=2)
    several = {"samples": 2, "passes": 2, "candidates": 2, **conditions(sampler.model)}
    yield "inpainting", partial(draw, samples=2)
    yield "inpainting, fresh noise", partial(draw, noise="fresh", seed=3, first_sample=7)
    yield "inpainting, passes", partial(draw, passes=3, correctors=1)
    yield "inpainting, candidates", partial(draw, candidates=10, batch_size=3)
    yield "inpainting, several options", partial(draw, **several)


def scoring(sampler: Sampler, n: int, precision: str) -> Cases:
    x = observed(sampler.model)[0]
    other = {"levels": (3,), "seed": 4, "first_sample": 1, "batch_size": 1}
    yield "log_density", partial(sampler.log_density, x)
    yield "log_density, level 3", partial(sampler.log_density, x, **other)
    if sampler.model.num_classes:
        label = sampler.model.classes[5]
        yield "log_density, label", partial(sampler.log_density, x, label=label)

    def statistics() -> Result:
        usual = sampler.level_statistics(x)
        scores = sampler.log_density(x, levels=usual.levels, statistics=usual)
        return {"mean": torch.tensor(usual.mean), "std": torch.tensor(usual.std), "scores": scores}

    yield "level_statistics", statistics


def combined(model: CDRL) -> dict[str, Density]:
    """Return combinations of a model's densities, some with those of a second model."""
    other = copy.deepcopy(model)
    found = {
        "product of models": product(model, other, base=model),
        "mixture of models": mixture(model, other, weights=(1, 2)),
        "tempered model": tempered(model, 2.0),
    }
    if model.num_classes:
        a, b = (conditional(model, model.classes[i]) for i in (3, 8))
        found |= {
            "conditional": a,
            "product": product(a, b),
            "mixture": mixture(a, b, weights=(3, 1)),
            "negated": negated(model, a, 0.5),
            "guided": guided(a, model, 1.5),
            "tempered": tempered(a, 0.5),
            "nested": tempered(mixture(product(a, b), negated(other, b, 0.5)), 0.8),
        }
    return found


def combinations(model: CDRL, n: int) -> Cases:
    x, known = observed(model)
    for name, density in combined(model).items():
        half, exact = Sampler(density), Sampler(density, precision="fp32")
        yield f"{name}, auto", partial(half.sample, n, steps=2)
        yield f"{name}, fp32", partial(exact.sample, n, steps=2, correctors=1)
        yield f"{name}, metropolis", partial(exact.sample, n, steps=1, metropolis=True)
        yield f"{name}, trace", partial(traced, exact, n, "steps", steps=1, batch_size=n - 1)
        yield f"{name}, log_density", partial(exact.log_density, x)
        yield f"{name}, inpainting", partial(half.inpaint, x, known, steps=1, candidates=2)


def other_networks(model: CDRL, n: int) -> Cases:
    def alone(energy: nn.Module) -> CDRL:
        return CDRL(energy, None, model.schedule, sample_shape=model.sample_shape)

    own = Sampler(alone(OwnEnergy(model.energy)))
    yield "no initializer", partial(Sampler(alone(model.energy)).sample, n, steps=2)
    yield "own energy", partial(own.sample, n, steps=2)
    yield "own energy, metropolis", partial(own.sample, n, steps=2, metropolis=True)
    yield "reference backend", partial(Sampler(model, backend="reference").sample, n, steps=1)


def densities(model: CDRL, n: int) -> Cases:
    x = observed(model)[0]

    def value_and_gradient(label: str | None) -> Result:
        leaf = x.clone().requires_grad_()
        value = model.log_density(leaf, t=2, label=model.label_indices(label, 1))
        return {"value": value, "gradient": torch.autograd.grad(value.sum(), leaf)[0]}

    for label in (None, *(model.classes[4:5] if model.num_classes else ())):
        yield f"CDRL.log_density, label {label}", partial(value_and_gradient, label)
    chain = partial(langevin, model.log_density, x, steps=5, step_size=1e-4)
    yield "langevin on CDRL.log_density", chain
