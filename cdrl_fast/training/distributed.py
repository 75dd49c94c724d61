"""Several processes that train one model by `torch.distributed`, each on a part of a batch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Group:
    """The processes of `torch.distributed`'s default group, or this one alone.

    Args:
        device: where this process trains.

    Attributes:
        rank, size: which of how many this one is.
    """

    def __init__(self, device: torch.device) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._device = device

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, element by element; NaN where one has NaN."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def all_reduce_min(self, value: Tensor) -> Tensor:
        """The smallest of all processes' values."""
        if self.size == 1:
            return value
        least = value.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return least

    def any(self, *wishes: bool) -> list[bool]:
        """For each wish, whether a process has it."""
        if self.size == 1:
            return list(wishes)
        flags = torch.tensor(wishes, dtype=torch.int32, device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def broadcast(self, value: Any) -> Any:
        """The first process's value, which can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self._device)
        return box[0]


class SharedNetwork:
    """A network whose gradients are the means over all processes.

    Args:
        network: of the same weights on each; unchanged but for ``shard``, which makes its
            parameters DTensors.
        group: the processes.
        shard: each keeps only its part of the weights, gradients and optimiser state (FSDP2)
            instead of all of them (DDP).

    Attributes:
        network: the one that was given.
    """

    def __init__(self, network: nn.Module, group: Group, *, shard: bool) -> None:
        self.network = self._forward = network
        self._sharded = shard and group.size > 1
        if self._sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            device = next(network.parameters()).device.type
            mesh = init_device_mesh(device, (group.size,))
            # The chain and the power iterations need whole weights in any case.
            fully_shard(network, mesh=mesh, reshard_after_forward=False)
        elif group.size > 1:
            self._forward = _replicated(network)

    def __call__(self, *inputs: Any) -> Tensor:
        """The network's value."""
        value: Tensor = self._forward(*inputs)
        return value

    @contextmanager
    def summing(self, *, last: bool) -> Iterator[None]:
        """Gradients of what is called here add up in this process, the last ones' sum in all."""
        network: Any = self.network
        if self._sharded:
            network.set_requires_gradient_sync(last)
            network.set_reshard_after_backward(last)
        alone = isinstance(self._forward, nn.parallel.DistributedDataParallel) and not last
        with self._forward.no_sync() if alone else nullcontext():  # type: ignore[operator]
            yield


def _replicated(network: nn.Module) -> nn.Module:
    replicated = nn.parallel.DistributedDataParallel
    # Buffers are functions of the weights, so the same everywhere. The option's name is changing.
    new = "forward_sync_buffers" in inspect.signature(replicated).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return replicated(network, **options)


@contextmanager
def unsharded(*networks: nn.Module | None) -> Iterator[None]:
    """Sharded networks have all their weights here; others always have. All processes enter it."""
    sharded: list[Any] = [n for n in networks if hasattr(n, "unshard")]
    for network in sharded:
        network.unshard()
    try:
        yield
    finally:
        for network in sharded:
            network.reshard()


def all_gather(value: Tensor) -> Tensor:
    """A sharded tensor with all its elements, for which all processes ask; others as they are."""
    full = getattr(value, "full_tensor", None)
    return value if full is None else full()


def distribute(target: Any, value: Tensor) -> Tensor:
    """A whole tensor, sharded as ``target`` is."""
    if not hasattr(target, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def worker() -> tuple[int, int]:
    """Which of how many processes of torchrun this is; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def worker_device(device: torch.device) -> torch.device:
    """The device itself, or of several GPUs that of torchrun's local rank."""
    if worker()[1] == 1 or device.type != "cuda":
        return device
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun has started, if it has; gives `worker_device`."""
    place = worker_device(device)
    if worker()[1] == 1:
        yield place
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place
    finally:
        dist.destroy_process_group()
