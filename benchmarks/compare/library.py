"""The installed library under the names of any version, and work that both comparisons do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import cdrl_fast
from cdrl_fast import CDRL, Density, Sampler, Trainer
from cdrl_fast.data import Dataset, load_data

THREADS = 2


Result = Tensor | Mapping[str, Tensor | Mapping[str, Tensor]]
"""One tensor, or parts by name, each a tensor or several by name."""
Cases = Iterator[tuple[str, Callable[[], Result]]]
"""Names of cases, and the functions that compute their results."""


def environment() -> str:
    """Fix the number of threads; return what decides a result's bits besides the library."""
    torch.set_num_threads(THREADS)
    backend = cdrl_fast.about().used["cpu"]["langevin_step"]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {capability}, {THREADS} threads, backend {backend}"


def location() -> str:
    """Return where the library is and its version."""
    return f"{cdrl_fast.__file__}, version {cdrl_fast.__version__}"


def conditional(model: CDRL, label: str) -> Density:
    """Return the density of one class of a model; version 0.1 names the function `given`."""
    function = getattr(cdrl_fast, "conditional", None) or cdrl_fast.given
    return function(model, label)


def traced(sampler: Sampler, n: int, kind: str, **options: Any) -> dict[str, Tensor]:
    """Draw samples with their trace; return the samples, the states and the trace's other tensors.

    The other tensors are numbered in the order of declaration, so that a field may be renamed.
    """
    if hasattr(sampler, "sample_trace"):
        trace = sampler.sample_trace(n, trace=kind, **options)
        samples = trace.samples
    else:
        samples, trace = sampler.sample(n, trace=kind, **options)
    fields = {k: v for k, v in vars(trace).items() if k not in ("samples", "states")}
    others = {f"tensor {i}": v for i, v in enumerate(fields.values(), 1) if isinstance(v, Tensor)}
    return {"samples": samples, "states": trace.states, **others}


def training_data(name: str) -> Dataset:
    """Return the training part of a shipped recipe's data."""
    recipe = _recipes().load_recipe(name)
    data = load_data(recipe.data)
    return data.split(recipe.held_out)[0] if recipe.held_out else data


def make_trainer(
    name: str,
    *,
    model: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **training: Any,
) -> Trainer:
    """Return the trainer of a shipped recipe with fresh weights.

    Args:
        name: the recipe, "digits" or "checkerboard".
        model: replaces options of the recipe's model.
        dtype: dtype of the weights.
        training: replaces options of the recipe's training.
    """
    recipe, data = _recipes().load_recipe(name), training_data(name)
    network = replace(recipe.model, **(model or {})).build(data).to(dtype)
    return Trainer(network, data, replace(recipe.training, **training))


def small_network() -> nn.Sequential:
    """Return the log-density of points of the plane that `langevin` runs compiled."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 1), nn.Flatten(0))


def _recipes() -> ModuleType:
    """Return the module of recipes; version 0.1 has it at the top of the package."""
    try:
        return importlib.import_module("cdrl_fast.training.recipe")
    except ModuleNotFoundError:
        return importlib.import_module("cdrl_fast.recipe")
