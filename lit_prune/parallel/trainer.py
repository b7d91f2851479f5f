"""What a Lightning trainer must know of the group of processes that this one belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments import LightningEnvironment

from lit_prune.parallel.group import rank, world_size

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


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
    """Return the environment of a trainer: the group, or one device, also in a job of Slurm that Lightning sees."""
    return [LightningEnvironment() if world_size() == 1 else Joined()]


def data_parallel() -> Strategy:
    """Return the strategy by which every rank holds the whole model."""
    from lightning.pytorch.strategies import DDPStrategy

    # An objective may leave layers without a gradient, such as those above the last state that is compared. With views
    # there is one copy of the gradients instead of two.
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)


def trainer_options(accelerator: str, strategy: Callable[[], Strategy] = data_parallel) -> dict[str, Any]:
    """Return the devices of a Lightning trainer, and for several ranks its strategy."""
    if world_size() == 1:
        return {"accelerator": accelerator, "devices": 1}
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return {"accelerator": "gpu" if gpu else "cpu", "devices": world_size(), "strategy": strategy()}
