"""The group of processes that this one belongs to: its rank, agreement, and means over all ranks.

Outside a group a process is the only rank, and every function returns what it is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
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


def any_rank(flag: bool) -> bool:
    """Return whether the flag of any rank is set; all ranks call this together."""
    if world_size() == 1:
        return flag
    found = torch.tensor(int(flag))
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


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
