"""One training run, from the start or the last checkpoint to the last step: of a student, or of any module."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch import nn

from lit_prune.config import Distill, DynamicLoading, Execution, Precision, resolve_precision
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill.callbacks import Checkpoint, Diverged, History, Progress, Resume
from lit_prune.distill.checkpoint_io import AtomicCheckpointIO, remove_checkpoint, resumable
from lit_prune.distill.cotrain import JointDistiller
from lit_prune.distill.domain_loading import DomainLoading
from lit_prune.distill.micro_batches import micro_batches
from lit_prune.distill.module import Distiller
from lit_prune.distill.sharded_strategy import ShardedStrategy
from lit_prune.distill.sharding import whole_afterwards
from lit_prune.distill.teacher import Teacher
from lit_prune.distill.trainable import trained_part
from lit_prune.models.checkpointed import checkpointed_layers
from lit_prune.models.compiled import compiled_layers
from lit_prune.parallel.group import agree, is_main, world_size
from lit_prune.parallel.trainer import data_parallel, environments, trainer_options
from lit_prune.pruning.masked import mean_loss
from lit_prune.pruning.masks import Masks

OnProgress = Callable[[int, dict[str, float]], None]
STRATEGIES: dict[str, Callable[[], Strategy]] = {"ddp": data_parallel, "fsdp": ShardedStrategy}
"""`Execution.strategy` -> the strategy of a training on several ranks."""

DOMAINS = "domains.csv"
"""File of a run with the losses of the domains and their new shares."""


def train(
    student: nn.Module, teacher: nn.Module | Teacher | None, distill: Distill, tokens: Path, folder: Path, *,
    seed: int, execution: Execution, on_progress: OnProgress,
    loggers: Iterable[Logger] = (), callbacks: Iterable[L.Callback] = (), masks: Masks | None = None,
) -> None:  # fmt: skip
    """Train `student` in place on the tokens in folder `tokens`; checkpoint and metrics.csv go to `folder`.

    Weights that are masked stay zero, also if adapters are trained and merged. The losses of the domains and their
    shares, if sequences are drawn by them, are the columns of domains.csv.

    If the recipe has a `teacher_optimizer`, `teacher` is trained in place too. In a group of ranks, all call this with
    models of the same shape, and start with the weights of rank 0. If these are sharded, the models of others may be on
    the meta device, as a frozen teacher is afterwards.

    An interrupted run resumes from `folder`/last.ckpt at the next unseen sequence, on any number of ranks; on a CPU and
    on one rank its result is bitwise equal to an uninterrupted one.

    Raises:
        Diverged: if the loss, a weight or the optimizer state is not finite; the checkpoint is removed.
    """
    L.seed_everything(seed, verbose=False)
    kind = Distiller if distill.teacher_optimizer is None else JointDistiller
    imitated = student if teacher is None else teacher if isinstance(teacher, nn.Module) else teacher.model
    accumulate = micro_batches(distill, imitated.config, execution)
    module = kind(student.train(), teacher, distill, accumulate, masks)
    loading = distill.dynamic_loading
    data = RetrainingData(
        tokens, seq_len=distill.seq_len, batch_size=distill.batch_size, max_steps=distill.max_steps, seed=seed,
        grad_accum_steps=accumulate, num_workers=execution.num_workers, by_domain=loading is not None,
    )  # fmt: skip
    if loading is not None:
        reference = functools.partial(mean_loss, imitated)
        callbacks = [DomainLoading(data, tokens, loading, folder / DOMAINS, reference), *callbacks]
    compiled = execution.compile and not module.compares_states
    trained = [student] if distill.teacher_optimizer is None else [student, imitated]
    checkpointed = checkpointed_layers(*trained) if execution.activation_checkpointing else contextlib.nullcontext()
    sharded = execution.strategy == "fsdp" and world_size() > 1
    models = [student] if teacher is None else [student, imitated]
    with (
        trained_part(student, distill, masks),
        compiled_layers(student) if compiled else contextlib.nullcontext(),
        checkpointed,
        whole_afterwards(*models) if sharded else contextlib.nullcontext(),
    ):
        run(
            module, data, folder, max_steps=distill.max_steps, execution=execution, precision=distill.precision,
            accumulate=accumulate, on_progress=on_progress, loggers=loggers, callbacks=callbacks,
        )  # fmt: skip
    if sharded:
        del module
        gc.collect()  # the parts of FSDP refer to each other, and hold shards and moments
    student.eval()


def fit(
    module: L.LightningModule, tokens: Path, folder: Path, *, max_steps: int, batch_size: int, seq_len: int, seed: int,
    precision: Precision, execution: Execution, on_progress: OnProgress, callbacks: Iterable[L.Callback] = (),
    loading: DynamicLoading | None = None,
) -> None:  # fmt: skip
    """Train any module for `max_steps` on batches of the train split of `tokens`, as `train` trains a student.

    `module.terms` holds the scalars of the newest step, among them `loss`; they are the columns of metrics.csv. The
    random numbers of the module must come from torch's global generators, and what it needs to resume must be in its
    `state_dict`. A finished run keeps its checkpoint and is not repeated. With `loading` sequences are drawn by domain;
    the losses of the domains, by `module.mean_loss`, and their shares are the columns of domains.csv.

    Raises:
        Diverged: as `train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(seed, verbose=False)
    data = RetrainingData(
        tokens, seq_len=seq_len, batch_size=batch_size, max_steps=max_steps, seed=seed,
        num_workers=execution.num_workers, by_domain=loading is not None,
    )  # fmt: skip
    domains = [] if loading is None else [DomainLoading(data, tokens, loading, folder / DOMAINS)]
    run(
        module, data, folder, max_steps=max_steps, execution=execution, precision=precision, on_progress=on_progress,
        callbacks=[*domains, *callbacks], keep=True,
    )  # fmt: skip


def run(
    module: L.LightningModule, data: L.LightningDataModule, folder: Path, *, max_steps: int, execution: Execution,
    precision: Precision, on_progress: OnProgress, accumulate: int = 1, loggers: Iterable[Logger] = (),
    callbacks: Iterable[L.Callback] = (), keep: bool = False,
) -> None:  # fmt: skip
    """Train a module from `folder`/last.ckpt or from the start to `max_steps`; with `keep`, save the last step too.

    Raises:
        Diverged: as `train`.
    """
    history, path = History(folder / "metrics.csv", execution.log_every), folder / "last.ckpt"
    every = [
        Resume(), history, Progress(history, on_progress), *callbacks, Checkpoint(folder, execution.checkpoint_seconds)
    ]  # fmt: skip
    trainer = L.Trainer(
        max_steps=max_steps, accumulate_grad_batches=accumulate, precision=resolve_precision(precision),
        **trainer_options(execution.accelerator, STRATEGIES[execution.strategy]), logger=list(loggers) or False,
        callbacks=every, enable_checkpointing=False, plugins=[AtomicCheckpointIO(), *environments()],
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    try:
        sharded = isinstance(trainer.strategy, ShardedStrategy)
        trainer.fit(module, datamodule=data, ckpt_path=agree(resumable(path, sharded=sharded) if is_main() else None))
        if keep:
            trainer.save_checkpoint(path)
    except Diverged:
        if is_main():
            remove_checkpoint(path)  # it may lie on the way to divergence: the next run starts anew
        raise
    finally:
        # Reference cycles of trainer, loops and module would keep models and optimizer states in memory.
        vars(trainer).clear()
