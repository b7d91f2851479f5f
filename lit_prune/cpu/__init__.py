"""Four optional CPU optimisations of the whole process; each stays off if it does not help on this machine.

None changes a result beyond rounding, and none is part of an address. Torch is imported when they are applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_prune.config import Execution
from lit_prune.config.overrides import check_flags
from lit_prune.store.environment import runtime

if TYPE_CHECKING:
    from lit_prune.cpu.attention import AttentionShape

_chosen: Execution | None = None
_applied: dict[str, Any] = {}


def choose(execution: Execution) -> None:
    """Choose the CPU optimisations of this process; `prepare` applies them.

    Raises:
        ConfigError: if a flag is out of its range.
    """
    global _chosen
    check_flags(execution)
    _chosen = execution


def chosen() -> Execution | None:
    """Return what `choose` was given in this process, for the other ranks of its group; None without a choice."""
    return _chosen


def prepare(shape: AttentionShape | None = None) -> None:
    """Apply the chosen optimisations before a model runs, once for each shape; do nothing without a choice.

    `shape` is the attention that takes most of the time; None takes the kernel of any earlier one.
    """
    if _chosen is None:
        return
    wishes = [_chosen.cpu, _chosen.threads]
    if _applied.get("switches") == wishes and shape in (None, _applied.get("shape")):
        return
    from lit_prune.cpu import allocator, attention, matmul, threads

    auto = _chosen.cpu == "auto" and not _elsewhere(_chosen.accelerator)
    threads.watch()
    with threads.alone():
        _applied.update(matmul=matmul.switch(auto), allocator=allocator.switch(auto))
        # After the matmuls, which its timing includes.
        _applied.update(attention=attention.switch(auto, shape or attention.QUICK))
    _applied.update(threads=threads.switch(auto, _chosen.threads), switches=wishes, shape=shape)
    runtime["cpu"] = applied()


@contextmanager
def plainly() -> Iterator[None]:
    """Use PyTorch's own attention and matmuls inside `with`, for scores that are ranked: rounding breaks near ties.

    With all optimisations forced on, scores changed by 1e-6, and 2 of 32,000 places in the rankings changed.
    """
    from lit_prune.cpu import attention, matmul

    with attention.only({}), matmul.onednn(False):
        yield


def applied() -> dict[str, Any]:
    """Return the state of each optimisation, with the reason if it is off; empty before `prepare`."""
    return {name: found for name, found in _applied.items() if name not in ("switches", "shape")}


def _elsewhere(accelerator: str) -> bool:
    """Return whether the models run on an accelerator instead of the CPU."""
    import torch

    return accelerator != "cpu" and torch.accelerator.is_available()
