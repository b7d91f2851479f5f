"""One training run from start, or from where it was interrupted, to its last step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from lit_prune.config import Distill
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill.callbacks import History, Progress
from lit_prune.distill.module import Distiller

Tell = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out; never part of an address."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: str = "auto"
    """Number of devices, or auto for all; several train data-parallel."""
    accumulate: int = 1
    """Micro-batches a step is cut into, to save memory."""
    workers: int = 0
    """Processes that load data."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints: the most that an interruption costs."""
    log_every: int = 10
    """Steps between rows of metrics.csv."""


def train(
    student: nn.Module, teacher: nn.Module | None, distill: Distill, tokens: Path, folder: Path, *,
    seed: int, execution: Execution, tell: Tell, loggers: Iterable[Logger] = (),
) -> None:  # fmt: skip
    """Train `student` in place on the tokens in folder `tokens`; checkpoint and metrics.csv go to `folder`.

    An interrupted run continues from `folder`/last.ckpt at the next unseen block, and ends bit for bit where an
    uninterrupted one does (CPU).

    Raises:
        Diverged: the loss is no longer a number.
    """
    L.seed_everything(seed, verbose=False)
    module = Distiller(student.train(), teacher, distill)
    data = RetrainingData(
        tokens, block=distill.block, batch=distill.batch, steps=distill.steps, seed=seed,
        accumulate=execution.accumulate, num_workers=execution.workers,
    )  # fmt: skip
    history = History(folder / "metrics.csv", execution.log_every)
    trainer = L.Trainer(
        max_steps=distill.steps,
        precision=distill.precision,
        accelerator=execution.accelerator,
        devices=execution.devices,
        accumulate_grad_batches=execution.accumulate,
        logger=list(loggers) or False,
        callbacks=[history, Progress(history, tell), _checkpoint(folder, execution.checkpoint_seconds)],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    unfinished = folder / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=unfinished if unfinished.exists() else None)
    student.eval()


def _checkpoint(folder: Path, seconds: float) -> ModelCheckpoint:
    """Overwrite last.ckpt atomically, between steps only: checkpoints at an epoch's end repeat data on resumption."""
    return ModelCheckpoint(
        dirpath=folder, filename="last", train_time_interval=timedelta(seconds=seconds), save_on_train_epoch_end=False,
        enable_version_counter=False,
    )  # fmt: skip


def quiet() -> None:
    """Let Lightning speak only of errors: progress and results are reported by the caller."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*_pytree.*")
