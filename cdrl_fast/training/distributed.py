"""Data-parallel training by `torch.distributed`: each process computes a part of every batch."""

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
        device: device on which this process trains.

    Attributes:
        rank: index of this process.
        size: number of processes.
    """

    def __init__(self, device: torch.device) -> None:
        initialized = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if initialized else (0, 1)
        self._device = device

    def mean(self, values: Tensor) -> Tensor:
        """Return the elementwise mean over processes; NaN where any process has NaN."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def all_reduce_min(self, value: Tensor) -> Tensor:
        """Return the minimum over processes."""
        if self.size == 1:
            return value
        minimum = value.clone()
        dist.all_reduce(minimum, dist.ReduceOp.MIN)
        return minimum

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.size == 1:
            return list(flags)
        maximum = torch.tensor(flags, dtype=torch.int32, device=self._device)
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
        return [bool(flag) for flag in maximum.tolist()]

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value, which must be picklable."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self._device)
        return values[0]


class DataParallelNetwork:
    """A network whose gradients are averaged over all processes.

    Args:
        network: has the same weights in each process. It is not changed, except that ``shard``
            makes its parameters DTensors.
        group: the processes.
        shard: each process keeps only its part of the weights, gradients and optimizer state
            (FSDP2) instead of all of them (DDP).

    Attributes:
        network: the network itself.
    """

    def __init__(self, network: nn.Module, group: Group, *, shard: bool) -> None:
        self.network = self._forward = network
        self._sharded = shard and group.size > 1
        if self._sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            device = next(network.parameters()).device.type
            mesh = init_device_mesh(device, (group.size,))
            # The chain and the power iterations need the full weights during the iteration.
            fully_shard(network, mesh=mesh, reshard_after_forward=False)
        elif group.size > 1:
            self._forward = _replicate(network)

    def __call__(self, *inputs: Any) -> Tensor:
        """Return the network's output."""
        output: Tensor = self._forward(*inputs)
        return output

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Accumulate the block's gradients in this process; average them over all after the last.

        Args:
            last: whether this is the iteration's last block for the network.
        """
        network: Any = self.network
        if self._sharded:
            network.set_requires_gradient_sync(last)
            network.set_reshard_after_backward(last)
        local = isinstance(self._forward, nn.parallel.DistributedDataParallel) and not last
        with self._forward.no_sync() if local else nullcontext():  # type: ignore[operator]
            yield


def _replicate(network: nn.Module) -> nn.Module:
    ddp = nn.parallel.DistributedDataParallel
    # Buffers depend on the weights alone, so they agree already. Newer torch renames the option.
    renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return ddp(network, **options)


@contextmanager
def unsharded(*networks: nn.Module | None) -> Iterator[None]:
    """Gather the weights of sharded networks for the block; all processes must enter it.

    Networks that are not sharded, and None, are left as they are.
    """
    sharded: list[Any] = [n for n in networks if hasattr(n, "unshard")]
    for network in sharded:
        network.unshard()
    try:
        yield
    finally:
        for network in sharded:
            network.reshard()


def all_gather(tensor: Tensor) -> Tensor:
    """Return a sharded tensor with all its elements, and any other tensor as it is.

    All processes must call it.
    """
    full_tensor = getattr(tensor, "full_tensor", None)
    return tensor if full_tensor is None else full_tensor()


def distribute(tensor: Tensor, target: Any) -> Tensor:
    """Return a full tensor, sharded as ``target`` is; as it is where ``target`` is not sharded."""
    if not hasattr(target, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements
    return distribute_tensor(tensor.to(target.device), mesh, placements, src_data_rank=None)


def worker() -> tuple[int, int]:
    """Return this process's rank and the number of processes of torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def worker_device(device: torch.device) -> torch.device:
    """Return the device, or, for CUDA under torchrun, the GPU of this process's local rank."""
    if worker()[1] == 1 or device.type != "cuda":
        return device
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of torchrun, if there are any, and yield the `worker_device`."""
    device = worker_device(device)
    if worker()[1] == 1:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
