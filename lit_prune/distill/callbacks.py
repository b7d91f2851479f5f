"""Callbacks of a training run: metrics history, progress, validation, checkpoints and detection of divergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

from lit_prune.distill.sharded_strategy import gathered
from lit_prune.distill.sharding import local
from lit_prune.losses.sequence_losses import SequenceLosses
from lit_prune.store.atomic import atomic_path


class Diverged(RuntimeError):
    """The loss, a weight or the state of the optimizer is no longer a finite number."""


class Resume(L.Callback):
    """Save the random state, and restore it and the position in the run.

    Lightning does not save the state: with dropout or sampled masks a resumed run would differ. It counts
    micro-batches, whose number per step may differ when a run is resumed; they are converted from steps. The state is
    that of rank 0; the others draw from generators of their own, and new ones where a run is resumed.
    """

    def __init__(self) -> None:
        self._random_state: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._random_state is not None:
            _set_random_state(self._random_state)
        if not trainer.is_global_zero:  # else the sequences of all ranks would get the same dropout masks
            place = np.random.SeedSequence([torch.initial_seed(), trainer.global_rank, trainer.global_step])
            torch.manual_seed(int(place.generate_state(1)[0]))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = _random_state()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint["random_state"]
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (counts["total"], counts["current"]):
            count.update(ready=done, started=done, processed=done, completed=done - 1)


class History(L.Callback):
    """Write means of every term over windows of `every` steps to metrics.csv and to the loggers.

    Terms are summed as tensors and read once per window: a key of `self.log` would cost a quarter of a millisecond and
    a device synchronisation at every step. The rows are part of the checkpoint, so an interrupted run neither loses nor
    repeats any.

    Raises:
        Diverged: if the loss of a window is not finite.
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
        # Read here: at the end of the batch the scheduler has already stepped.
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
    """Call `on_progress(step, row)` after every optimizer step, with the newest row of the history."""

    def __init__(self, history: History, on_progress: Callable[[int, dict[str, float]], None]) -> None:
        self.history, self.on_progress = history, on_progress

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _ends_step(trainer, batch_idx):
            self.on_progress(trainer.global_step, self.history.rows[-1] if self.history.rows else {})


class Checks(L.Callback):
    """Validate the student before the first step and after each of `steps`, and write one row of means to a CSV file.

    `at_end` of `evaluate(student, at_end)` is True before the first and after the last step. `evaluate` must draw no
    random numbers, so that training is the same with and without validation. Rows and ends are part of the checkpoint.
    All ranks call it and must get the same.
    """

    def __init__(
        self, path: Path, steps: Collection[int], evaluate: Callable[[Any, bool], Mapping[str, SequenceLosses]]
    ) -> None:
        self.path, self.steps, self.evaluate = path, steps, evaluate
        self.rows: list[dict[str, float]] = []
        self.ends: dict[int, Mapping[str, SequenceLosses]] = {}
        """Step -> losses per sequence, for the first and the last validation."""

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
        losses = gathered(trainer, self.evaluate, pl_module.student, at_end)
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
        # Checkpoints of earlier versions have no `ends`.
        self.ends = {
            step: {name: SequenceLosses(*loss) for name, loss in found.items()}
            for step, found in state_dict.get("ends", {}).items()
        }


def check_steps(steps: int, checks: int) -> frozenset[int]:
    """Return the steps after which a run of `steps` is validated: the ends of `checks` equal parts."""
    return frozenset(round(steps * i / checks) for i in range(1, checks + 1))


class Checkpoint(L.Callback):
    """Overwrite last.ckpt every `seconds`, atomically, only between optimizer steps and only with finite values.

    Lightning's ModelCheckpoint may save between two micro-batches, and would lose the gradients accumulated so far.

    Raises:
        Diverged: if a value is not finite, before a checkpoint is written or at the end of the run.
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
        # Rank 0 decides for all: clocks differ, and saving is a collective operation.
        if not _ends_step(trainer, batch_idx) or not trainer.strategy.broadcast(due):
            return
        self._check(trainer, pl_module, outputs["loss"])
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer, pl_module)  # the last update has no later loss to show divergence

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule, *losses: torch.Tensor) -> None:
        moments = [x for optimizer in trainer.optimizers for state in optimizer.state.values() for x in state.values()]
        parts = {"the loss": losses, "a weight": [*pl_module.parameters()], "the optimizer's state": moments}
        for what, tensors in parts.items():
            # All ranks raise or none: the others would wait for one that stops alone.
            if not trainer.strategy.reduce_boolean_decision(_finite(tensors)):
                raise Diverged(f"{what} is not finite at step {trainer.global_step}")


class Spending(L.Callback):
    """Call `spend`, which records the elapsed time, at every checkpoint, on rank 0."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.spend = spend

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self.spend()


def _finite(tensors: Collection[torch.Tensor]) -> bool:
    """Return whether all values of the tensors are finite."""
    checked: dict[torch.device, list[torch.Tensor]] = {}  # by device: the step counts of AdamW stay on the CPU
    for tensor in tensors:
        checked.setdefault(tensor.device, []).append(local(tensor.detach()).isfinite().all())
    return all(bool(torch.stack(found).all()) for found in checked.values())


def _write(rows: list[dict[str, float]], path: Path) -> None:
    """Write a CSV file atomically, since it is read during a run and after a killed one."""
    with atomic_path(path) as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False)


def _ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _random_state() -> dict[str, Any]:
    """Return the state of torch's random generators on every device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    """Restore what `_random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
