"""Several training runs in one process that take turns, one micro-batch each, so that they can share what they read.

Each is a run of its own: its trainer, random numbers, checkpoint and end are what they are alone, and what fails one of
them leaves the others as they are. One runs at a time (greenlets), so that nothing is ever done by two at once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import greenlet
import lightning as L
import torch

from lit_prune.distill.callbacks import History

Result = TypeVar("Result")


class Turn(L.Callback):
    """Let the other runs of `in_turns` go on before each micro-batch; alone it only keeps the time."""

    def __init__(self, spend: Callable[[float], None], *, alone: bool = False) -> None:
        self.alone, self.away = alone, 0.0
        """Seconds in which the others had their turn."""
        self.spend = spend
        """Called with `seconds` whenever a checkpoint is written."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start in which the others did not have their turn."""
        return time.perf_counter() - self._started - self.away

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.spend(round(self.seconds, 1))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        others = greenlet.getcurrent().parent
        if others is not None and not self.alone:
            mine, left = random_state(), time.perf_counter()
            others.switch()
            set_random_state(mine)
            away = time.perf_counter() - left
            self.away += away
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, History):
                    callback.pause(away)


def in_turns(runs: Iterable[Callable[[], Result]]) -> list[Result]:
    """Carry out all runs, which change over wherever a `Turn` says so, and return their results in order.

    An exception of one of them stops all the others and is raised.
    """
    results: dict[int, Result] = {}
    with _signal_handlers_kept():
        waiting = {number: greenlet.greenlet(run) for number, run in enumerate(runs)}
        try:
            while waiting:
                for number, one in list(waiting.items()):
                    result = one.switch()
                    if one.dead:
                        results[number] = result
                        del waiting[number]
        finally:
            for one in waiting.values():
                if not one.dead:
                    one.throw(greenlet.GreenletExit)
    return [results[number] for number in sorted(results)]


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Lightning puts back the handlers it found when a run began, which may be those of another run."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def random_state() -> dict[str, Any]:
    """The state of torch's random numbers on every device."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from a state that `random_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
