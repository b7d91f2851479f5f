"""What happens around the steps of a run: its history, its progress, checks on the way, and noticing divergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from lit_prune.losses.sequence_losses import SequenceLosses
from lit_prune.store.atomic import atomic_path


class Diverged(RuntimeError):
    """The loss, a weight or the state of the optimizer is no longer a finite number."""


class History(L.Callback):
    """Means of every logged term over windows of `every` steps: metrics.csv, and the same rows to the loggers.

    Terms are summed as tensors and read once a window, since each `self.log` key costs a quarter of a millisecond at
    every step and a device synchronisation. The rows are part of the checkpoint, so an interrupted run loses none and
    repeats none.

    Raises:
        Diverged: a window whose loss is not finite.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = self._tokens = 0
        self._seconds = self._lr = 0.0
        self._since = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter() - self._seconds

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # At the end of the batch the schedule has already moved on.
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += batch["input_ids"].numel() * trainer.world_size
        if not _ends_step(trainer, batch_idx):
            return
        for name, value in pl_module.terms.items():  # type: ignore[union-attr, operator]
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._steps += 1
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._close_window(trainer)

    def _close_window(self, trainer: L.Trainer) -> None:
        seconds = time.perf_counter() - self._since
        row: dict[str, float] = {"step": trainer.global_step}
        row |= {name: (value / self._steps).item() for name, value in self._sums.items()}
        row |= {"lr": self._lr, "tokens_per_second": self._tokens / seconds}
        self.rows.append(row)
        self._sums, self._steps, self._tokens, self._since = {}, 0, 0, time.perf_counter()
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=trainer.global_step)
        if trainer.is_global_zero:
            _write(self.rows, self.path)
        if not torch.isfinite(torch.tensor(row["loss"])):
            raise Diverged(f"the loss is {row['loss']} at step {trainer.global_step}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "sums": self._sums, "batches": self._steps, "tokens": self._tokens,
            "seconds": time.perf_counter() - self._since,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._sums = state_dict["rows"], state_dict["sums"]
        self._steps, self._tokens = state_dict["batches"], state_dict["tokens"]
        self._seconds = state_dict["seconds"]


class Progress(L.Callback):
    """Call `tell(step, row)` after every optimizer step, `row` the newest of the history."""

    def __init__(self, history: History, tell: Callable[[int, dict[str, float]], None]) -> None:
        self.history, self.tell = history, tell

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _ends_step(trainer, batch_idx):
            self.tell(trainer.global_step, self.history.rows[-1] if self.history.rows else {})


class Checks(L.Callback):
    """Evaluate the student before the first step and after each of `steps`: one row of means each in a CSV file.

    `evaluate(student, at_end)` is told whether the run stands at one of its two ends, and draws no random numbers, so
    that the training is the same with and without checks. Rows and ends are part of the checkpoint.
    """

    def __init__(
        self, path: Path, steps: Collection[int], evaluate: Callable[[Any, bool], Mapping[str, SequenceLosses]]
    ) -> None:
        self.path, self.steps, self.evaluate = path, steps, evaluate
        self.rows: list[dict[str, float]] = []
        self.ends: dict[int, Mapping[str, SequenceLosses]] = {}
        """Step -> losses by sequence, before the first step and after the last one."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _ends_step(trainer, batch_idx) and trainer.global_step in self.steps:
            self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        at_end = trainer.global_step in (0, trainer.max_steps)
        losses = self.evaluate(pl_module.student, at_end)
        found = {name: loss.mean for name, loss in losses.items()}
        self.rows.append({"step": trainer.global_step, **found})
        if at_end:
            self.ends[trainer.global_step] = losses
        for logger in trainer.loggers:
            logger.log_metrics({f"validation/{name}": value for name, value in found.items()}, trainer.global_step)
        if trainer.is_global_zero:
            _write(self.rows, self.path)

    def state_dict(self) -> dict[str, Any]:
        ends = {
            step: {name: (loss.sums, loss.tokens) for name, loss in found.items()} for step, found in self.ends.items()
        }
        return {"rows": self.rows, "ends": ends}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        # A checkpoint from before the ends were kept has none.
        self.ends = {
            step: {name: SequenceLosses(*loss) for name, loss in found.items()}
            for step, found in state_dict.get("ends", {}).items()
        }


def check_steps(steps: int, checks: int) -> frozenset[int]:
    """Return the steps after which a run of `steps` is checked: the ends of `checks` equal parts of it."""
    return frozenset(round(steps * i / checks) for i in range(1, checks + 1))


class Checkpoint(L.Callback):
    """Overwrite last.ckpt every `seconds`, whole or not at all, only between steps, and only with finite numbers.

    Lightning's ModelCheckpoint would also save between two micro-batches of a step, whose gradients are in no
    checkpoint.

    Raises:
        Diverged: before a checkpoint is written, or at the end of the run: a number in it is not finite.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.path, self.seconds = folder / "last.ckpt", seconds
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = time.monotonic() - self._saved_at >= self.seconds
        # One process decides for all: their clocks differ, and saving is a collective act.
        if not _ends_step(trainer, batch_idx) or not trainer.strategy.broadcast(due):
            return
        self._check(trainer, pl_module, outputs["loss"])
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer, pl_module)  # the last update comes after the last loss

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule, *losses: torch.Tensor) -> None:
        moments = [x for optimizer in trainer.optimizers for state in optimizer.state.values() for x in state.values()]
        parts = {"the loss": losses, "a weight": [*pl_module.parameters()], "the optimizer's state": moments}
        for what, tensors in parts.items():
            # All processes or none: the others would wait for one that stops alone.
            if not trainer.strategy.reduce_boolean_decision(_finite(tensors)):
                raise Diverged(f"{what} is not finite at step {trainer.global_step}")


class Spending(L.Callback):
    """Call `spend`, which records the time so far, at every checkpoint."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.spend = spend

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.spend()


def _finite(tensors: Collection[torch.Tensor]) -> bool:
    """Return whether all numbers are finite."""
    checked: dict[torch.device, list[torch.Tensor]] = {}  # the step counts of AdamW stay on the CPU
    for tensor in tensors:
        checked.setdefault(tensor.device, []).append(tensor.detach().isfinite().all())
    return all(bool(torch.stack(found).all()) for found in checked.values())


def _write(rows: list[dict[str, float]], path: Path) -> None:
    """Write a CSV file atomically: it is read while the run goes on, and after it was killed."""
    with atomic_path(path) as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False)


def _ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
