"""The group of processes that this one belongs to: its rank, agreement, and means over all ranks.

Outside a group a process is the only rank, and every function returns what it is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, distributed

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in its group; rank 0 alone writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is rank 0."""
    return rank() == 0


def agree(value: Value) -> Value:
    """Return the value of rank 0 on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, the same bits on each."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / world_size()


def interleaved(share: Tensor) -> Tensor:
    """Return the rows of all ranks, of which rank r has every world_size-th from row r on; on the device of `share`."""
    world = world_size()
    if world == 1:
        return share
    shares: list[Any] = [None] * world
    distributed.all_gather_object(shares, share.cpu())
    rows = share.new_empty((sum(map(len, shares)), *share.shape[1:]))
    for place, found in enumerate(shares):
        rows[place::world] = found.to(rows.device)
    return rows


@contextlib.contextmanager
def joined(store: distributed.Store, rank: int, world: int, *, gpu: bool) -> Iterator[None]:
    """Be one of `world` ranks inside `with`; on GPUs the rank is the number of the GPU."""
    if gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=world)
    try:
        yield
    finally:
        distributed.destroy_process_group()


class Joined(ClusterEnvironment):
    """Tells Lightning that the processes exist already and are the ranks of the group."""

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: Lightning starts no process."""
        return True

    @property
    def main_address(self) -> str:
        """Return the address of rank 0, which Lightning does not use once the group exists."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Return the port of rank 0, which Lightning does not use once the group exists."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Return False: the class is only passed on by name."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks."""
        return world_size()

    def set_world_size(self, size: int) -> None:
        """Do nothing: the group fixes the number."""

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the group fixes the rank."""

    def local_rank(self) -> int:
        """Return the rank of this process: all are on one machine."""
        return rank()

    def node_rank(self) -> int:
        """Return 0: all ranks are on one machine."""
        return 0


def environments() -> list[ClusterEnvironment]:
    """Return the environment of a trainer of one device, which is alone even in a job of Slurm that Lightning sees."""
    return [LightningEnvironment()] if world_size() == 1 else []


def trainer_options(accelerator: str) -> dict[str, Any]:
    """Return the devices of a Lightning trainer, and for several ranks its strategy and environment."""
    if world_size() == 1:
        return {"accelerator": accelerator, "devices": 1}
    from lightning.pytorch.strategies import DDPStrategy

    # An objective may leave layers without a gradient, such as those above the last state that is compared. With views
    # there is one copy of the gradients instead of two.
    strategy = DDPStrategy(
        cluster_environment=Joined(), find_unused_parameters=True, gradient_as_bucket_view=True
    )  # fmt: skip
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return {"accelerator": "gpu" if gpu else "cpu", "devices": world_size(), "strategy": strategy}
