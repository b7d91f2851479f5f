"""Validate a request in seconds, without computing any of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lit_prune.config import Cell, ConfigError, DynamicLoading, Execution, Optimizer
from lit_prune.config.fields import of_parent
from lit_prune.config.overrides import build, check_flags, parent_of, parents_of
from lit_prune.config.training import check_decay
from lit_prune.distill.objective import check_objective
from lit_prune.distill.trainable import check_trained
from lit_prune.evaluate.throughput import check_positions
from lit_prune.models import loading
from lit_prune.models.positions import check_lengths
from lit_prune.pipeline.model_files import check_ids, check_same_tokens, check_weights
from lit_prune.pruning.shapes import (
    config_of_student,
    imitated_config,
    pruned_config,
    pruned_configs,
    prunes_sparse,
    teacher_config,
)

Section = TypeVar("Section")


def check_names(cell: Cell) -> None:
    """Check that every part that a cell names exists.

    Raises:
        ConfigError: if one does not exist or does not accept its settings.
    """
    from lit_prune.losses.hidden import hidden_losses
    from lit_prune.losses.logit import logit_loss_of

    cell.prune.check_settings()
    if cell.corpus.domain is None and any(dynamic_loadings(cell)):
        raise ConfigError("corpus.domain: must be set to draw sequences by domain, got null")
    _ = logit_loss_of(cell.distill.logit_loss, cell.distill.mixture), hidden_losses[cell.distill.hidden_loss]


def check_cells(cells: Iterable[Cell], execution: Execution) -> None:
    """Validate cells and the flags of their run from configs and file headers; compute and write nothing.

    Raises:
        ConfigError: if a cell or a flag is invalid.
    """
    cells = list(cells)
    check_execution(execution, [one for cell in cells for one in (cell, *parents_of(cell))])
    for cell in {repr(one): one for one in map(without_seeds, cells)}.values():  # as text, 1 and 1.0 differ
        check(cell)
    check_files(cells)


def without_seeds(node: Section) -> Section:
    """Return a section with every seed in it 0: what is checked depends on none."""
    changed: dict[str, Any] = {"seed": 0} if "seed" in vars(node) else {}
    sections = {name: value for name, value in vars(node).items() if dataclasses.is_dataclass(value)}
    changed |= {name: without_seeds(value) for name, value in sections.items()}
    return dataclasses.replace(node, **changed)  # type: ignore[type-var]


def check_files(cells: Iterable[Cell]) -> None:
    """Validate the files of the models that cells name, except those still to be converted.

    Raises:
        ConfigError: if they do not match their configs, or tokens differ.
    """
    cells = list(cells)
    check_weights(cells)
    check_ids(cells, _given_tokenizer)
    check_same_tokens(cells, _given_tokenizer)


def _given_tokenizer(cell: Cell) -> Any:
    """Return the teacher's tokenizer; None if the teacher is still to be pretrained or converted."""
    if cell.teacher.model is None:
        return None
    place = loading.locate(cell.teacher.model, cell.teacher.fingerprint, weights=False)
    return None if place.pending else loading.load_tokenizer(place)


def check(cell: Cell) -> None:
    """Validate the names, sizes and models of a cell and of its parents.

    Raises:
        ConfigError: if one is invalid.
    """
    depth = len(parents_of(cell))
    for place, (requested, pruned) in enumerate(pruned_configs(cell)):
        with of_parent(depth - place):
            check_names(requested)
            check_ranges(requested)
            check_parent(requested)
            check_models(requested, pruned)
            check_zeros(requested)


def check_zeros(cell: Cell) -> None:
    """Check that the weights that are zero in a sparse model stay zero in its students.

    Raises:
        ConfigError: if the method or the retraining would change them.
    """
    if not prunes_sparse(cell):
        return
    cuts = cell.prune.init_from is None and cell.prune.init == "teacher"
    if cuts and not cell.prune.keeps_zeros:
        raise ConfigError(
            "prune.method: must keep the zeros of the sparse model that it prunes, with these settings, got "
            f"{cell.prune.method}"
        )
    if cell.distill.max_steps and cell.distill.teacher_optimizer is not None:
        raise ConfigError("distill.teacher_optimizer: must be null with a sparse teacher or parent")


def check_parent(cell: Cell) -> None:
    """Check that a parent, if any, has an effect.

    Raises:
        ConfigError: if it has no effect.
    """
    parent = parent_of(cell)
    if parent is None and cell.distill.imitate == "parent":
        raise ConfigError("distill.imitate: must be teacher where there is no parent, got parent")
    if parent is None:
        return
    for name, value in (("init_from", cell.prune.init_from), ("init", cell.prune.init)):
        if value not in (None, "teacher"):
            raise ConfigError(f"parent: must be null where prune.{name} is {value}")
    if parent.prune.init == "random" and not parent.distill.max_steps:
        raise ConfigError("parent.prune.init: must be teacher where the parent is not trained, got random")


def check_models(cell: Cell, pruned: Any = None) -> None:
    """Check that the student can be cut from the model with the config `pruned`, and imitate the teacher.

    `pruned` is inferred if not given.

    Raises:
        ConfigError: if a shape exceeds the teacher's or its family forbids it, vocabularies differ, a layer map
            does not fit, or the objective has no terms.
    """
    config = teacher_config(cell)
    if cell.prune.init_from is not None and cell.prune.init == "random":
        raise ConfigError("prune.init: must be teacher with prune.init_from, got random")
    _check_lengths(cell, config, "the teacher")
    if cell.prune.init_from is None:
        pruned = pruned or pruned_config(cell)
        if cell.parent is not None:
            _check_lengths(cell, pruned, "the parent")
        cell.prune.check(pruned)
        num_layers, student_config = cell.prune.config_of(pruned).num_hidden_layers, pruned
    else:
        student_config = config_of_student(cell)
        _check_lengths(cell, student_config, "the student")
        num_layers = student_config.num_hidden_layers
    if cell.prune.init_from is None and student_config.vocab_size != config.vocab_size:
        raise ConfigError(
            f"parent: its vocabulary has {student_config.vocab_size} entries, the teacher's {config.vocab_size}"
        )
    if cell.evaluation.throughput is not None:
        for one in (student_config, config):
            check_positions(cell.evaluation.throughput, one)
    check_trained(cell.distill, student_config, num_layers)
    check_objective(cell.distill, imitated_config(cell), student_config, num_layers)


def _check_lengths(cell: Cell, config: Any, whose: str) -> None:
    """Check that no sequence of a cell is longer than the positions of a model with this config."""
    sections = ("calibration", "distill", "evaluation") if cell.distill.max_steps else ("calibration", "evaluation")
    lengths = {f"{name}.seq_len": getattr(cell, name).seq_len for name in sections}
    if cell.teacher.finetune is not None:
        lengths["teacher.finetune.seq_len"] = cell.teacher.finetune.seq_len
    check_lengths(lengths, config, whose)


def check_ranges(cell: Cell) -> None:
    """Check that every value is in the range of its field, also if the cell was not built by `override`.

    Raises:
        ConfigError: if one is out of range, validations outnumber steps, or a schedule rises or ends before its run.
    """
    build(Cell, dataclasses.asdict(cell))
    steps, validations = cell.distill.max_steps, cell.evaluation.num_validations
    if steps and validations > steps:
        raise ConfigError(f"evaluation.num_validations: must be <= distill.max_steps, {steps}, got {validations}")
    basin, num_sequences = cell.evaluation.basin, cell.evaluation.num_sequences
    if basin is not None and basin.num_sequences > num_sequences:
        raise ConfigError(
            f"evaluation.basin.num_sequences: must be <= evaluation.num_sequences, {num_sequences}, got "
            f"{basin.num_sequences}"
        )
    if steps:
        _check_schedule(cell.distill.optimizer, steps, "distill.optimizer")
    if steps and cell.distill.teacher_optimizer is not None:
        _check_schedule(cell.distill.teacher_optimizer, steps, "distill.teacher_optimizer")
    for name in ("pretraining", "finetune"):
        if (recipe := getattr(cell.teacher, name)) is not None:
            _check_schedule(recipe.optimizer, recipe.max_steps, f"teacher.{name}.optimizer")


def _check_schedule(optimizer: Optimizer, steps: int, place: str) -> None:
    """Check that a run of `steps` lies within the schedule of its optimizer, and that its decay does not rise."""
    check_decay(optimizer, place)
    end, whole = optimizer.schedule_start + steps, optimizer.schedule_steps or steps
    if end > whole:
        raise ConfigError(f"{place}.schedule_steps: must be >= schedule_start + max_steps, {end}, got {whole}")


def check_execution(execution: Execution, cells: Sequence[Cell]) -> None:
    """Validate the runtime flags against every cell.

    Raises:
        ConfigError: if a flag is invalid.
    """
    import torch

    from lit_prune.distill.sharding import check_sharded
    from lit_prune.parallel.processes import check_devices

    check_flags(execution)
    if execution.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("--accelerator: must be auto or cpu on a machine without a GPU, got gpu")
    check_devices(execution.devices, execution.accelerator)
    if execution.activation_checkpointing and execution.compile:
        raise ConfigError("--activation-checkpointing: goes without --compile; leave out one of the two")
    check_sharded(execution, (cell.distill for cell in cells if cell.distill.max_steps))
    for cell in cells:
        if execution.devices > cell.calibration.num_sequences:
            raise ConfigError(
                f"--devices: must be <= calibration.num_sequences, {cell.calibration.num_sequences}, got "
                f"{execution.devices}"
            )
        recipes = {
            "distill": cell.distill if cell.distill.max_steps else None,
            "teacher.finetune": cell.teacher.finetune, "teacher.pretraining": cell.teacher.pretraining,
        }  # fmt: skip
        for place, recipe in recipes.items():
            if recipe is not None:
                _check_cut(recipe.batch_size, execution, place)


def _check_cut(batch_size: int, execution: Execution, place: str) -> None:
    """Check that the sequences of a step can be shared by the devices, and cut into micro-batches."""
    ours, rest = divmod(batch_size, execution.devices)
    if rest:
        raise ConfigError(f"--devices: must divide {place}.batch_size, {batch_size}, got {execution.devices}")
    if ours % (execution.grad_accum_steps or 1):
        share = f" on each of {execution.devices} devices" if execution.devices > 1 else ""
        raise ConfigError(
            f"--grad-accum-steps: {place}.batch_size, {ours}{share}, cannot be cut into {execution.grad_accum_steps} "
            "parts"
        )


def dynamic_loadings(cell: Cell) -> Iterator[tuple[str, DynamicLoading, int]]:
    """Yield the field with the references, the settings and the sequence length of trainings that draw by domain."""
    if cell.prune.loading is not None:
        yield "prune.domain_losses", cell.prune.loading, cell.calibration.seq_len
    if cell.distill.max_steps and cell.distill.dynamic_loading is not None:
        yield "distill.dynamic_loading.references", cell.distill.dynamic_loading, cell.distill.seq_len
