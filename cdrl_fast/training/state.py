"""What a training run is made of, as named tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdrl_fast.data import Dataset
from cdrl_fast.errors import CheckpointError
from cdrl_fast.model.cdrl import CDRL
from cdrl_fast.storage.folder import read_json
from cdrl_fast.storage.locate import CONFIG
from cdrl_fast.training.distributed import distribute


def training_config(folder: Path, files: Mapping[str, bytes], data: Dataset) -> Any:
    """A checkpoint's configuration, if it is one of a training on this data."""
    stored = read_json(folder, files, CONFIG)
    if "training" not in stored:
        raise CheckpointError(f"{folder}: a saved model, not a training checkpoint")
    trained = stored["training"]["data"]
    if trained["size"] != len(data):
        raise CheckpointError(
            f"{folder}: was trained on {trained['size']} samples of {trained['name']!r}, got "
            f"{len(data)} of {data.name!r}"
        )
    return stored


def checkpoint_size(model: CDRL) -> int:
    """Bytes of a checkpoint: weights, their averages, and two moments of each."""
    parameters = sum(t.nbytes for t in model.parameters())
    return 4 * parameters + 2 * sum(t.nbytes for t in model.buffers())


def part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors below a name, without it."""
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, also into a model whose weights are sharded.

    Raises:
        RuntimeError: names or shapes that do not fit.
    """
    state = model.state_dict()
    model.load_state_dict(
        {k: distribute(state[k], v) if k in state else v for k, v in tensors.items()}
    )


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state, below a name."""
    slots = optimizer.state_dict()["state"].items()
    return {f"{name}.{index}.{k}": v for index, values in slots for k, v in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes what `optimizer_tensors` gave, whole."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, slot = key.split(".")
        of = parameters[int(index)]
        state.setdefault(int(index), {})[slot] = distribute(of, value) if value.dim() else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """A loss scaler's state; nothing where it is idle."""
    numbers = scaler.state_dict()
    return {f"scaler.{k}": torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}


def load_scaler(scaler: torch.amp.GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """Takes what `scaler_tensors` gave, if both were in use."""
    if scaler.is_enabled() and tensors:
        old = scaler.state_dict()
        scaler.load_state_dict({k: type(old[k])(v.item()) for k, v in tensors.items()})
