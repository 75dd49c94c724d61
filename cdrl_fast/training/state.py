"""The state of a training run as named tensors of a checkpoint."""

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


def read_config(folder: Path, files: Mapping[str, bytes], data: Dataset) -> Any:
    """Read the configuration of a training checkpoint and check that it belongs to ``data``.

    Args:
        folder: the checkpoint's folder, for messages.
        files: the folder's verified files.
        data: the data set of the run.

    Raises:
        CheckpointError: no training checkpoint, or one of a data set of another size.
    """
    stored = read_json(folder, files, CONFIG)
    if "training" not in stored:
        raise CheckpointError(
            f"{folder}: expected a training checkpoint, got a saved model; load it with "
            "CDRL.from_pretrained"
        )
    trained = stored["training"]["data"]
    if trained["size"] != len(data):
        raise CheckpointError(
            f"{folder}: expected the {trained['size']} samples of {trained['name']!r} on which the "
            f"run was trained, got {len(data)} of {data.name!r}"
        )
    return stored


def checkpoint_size(model: CDRL) -> int:
    """Return the bytes of a checkpoint: weights, averaged weights, and two moments of each."""
    parameters = sum(t.nbytes for t in model.parameters())
    return 4 * parameters + 2 * sum(t.nbytes for t in model.buffers())


def subtree(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``name`` and a dot, without that prefix."""
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load full tensors into a model, whose weights may be sharded.

    Raises:
        RuntimeError: names or shapes that do not fit the model.
    """
    state = model.state_dict()
    model.load_state_dict(
        {k: distribute(v, state[k]) if k in state else v for k, v in tensors.items()}
    )


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state, its names prefixed by ``name`` and a dot."""
    slots = optimizer.state_dict()["state"].items()
    return {f"{name}.{index}.{k}": v for index, values in slots for k, v in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load an optimizer's state from full tensors, named as by `optimizer_tensors`, no prefix."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, slot = key.split(".")
        if value.dim():  # step counts have no dimensions and are never sharded
            value = distribute(value, parameters[int(index)])
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def scaler_tensors(scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
    """Return a loss scaler's state, its names prefixed by "scaler."; empty if it is disabled."""
    state = scaler.state_dict()
    return {f"scaler.{k}": torch.tensor(v, dtype=torch.float64) for k, v in state.items()}


def load_scaler(scaler: torch.amp.GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """Load a loss scaler's state, unless it is disabled or there are no tensors."""
    if scaler.is_enabled() and tensors:
        current = scaler.state_dict()
        scaler.load_state_dict({k: type(current[k])(v.item()) for k, v in tensors.items()})
