"""The processor as a machine of its own: four switches of the whole process, each off where it does not help.

None changes a result beyond rounding, and none is part of an address. No torch until they are applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_prune.config import Execution
from lit_prune.config.overrides import check_flags
from lit_prune.store.environment import runtime

_chosen: Execution | None = None
_applied: dict[str, Any] = {}


def choose(execution: Execution) -> None:
    """Say how this process shall use its processor; nothing is done before `prepare`.

    Raises:
        ConfigError: if a flag is out of its range.
    """
    global _chosen
    check_flags(execution)
    _chosen = execution


def prepare() -> None:
    """Set the process up as chosen, once, before a model runs; nothing where nothing was chosen."""
    if _chosen is None or _applied.get("switches") == (wishes := [_chosen.cpu, _chosen.threads]):
        return
    from lit_prune.cpu import allocator, attention, matmul, threads

    auto = _chosen.cpu == "auto" and not _elsewhere(_chosen.accelerator)
    threads.watch()
    with threads.alone():
        _applied.update(matmul=matmul.switch(auto), allocator=allocator.switch(auto))
        # After the products, with which it is timed.
        _applied.update(attention=attention.switch(auto))
    _applied.update(threads=threads.switch(auto, _chosen.threads), switches=wishes)
    runtime["cpu"] = applied()


@contextmanager
def plainly() -> Iterator[None]:
    """PyTorch's own attention and products inside `with`, for what is ranked: rounding decides between near ties.

    With all switches forced, scores changed by 1e-6 and 2 of 32,000 places in the rankings.
    """
    from lit_prune.cpu import attention, matmul

    with attention.only({}), matmul.onednn(False):
        yield


def applied() -> dict[str, Any]:
    """Return what each switch did, with the reason where it is off; empty before `prepare`."""
    return {name: found for name, found in _applied.items() if name != "switches"}


def _elsewhere(accelerator: str) -> bool:
    """Return whether the models run on another device."""
    import torch

    return accelerator != "cpu" and torch.accelerator.is_available()
