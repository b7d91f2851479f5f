"""Everything that can be wrong with a request and seen without computing it, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_prune.config import Cell, ConfigError, Distill, Execution, Optim
from lit_prune.config.overrides import source_of, sources_of
from lit_prune.models import loading
from lit_prune.pipeline.model_files import check_ids, check_same_tokens, check_weights
from lit_prune.pipeline.resolve import of_source
from lit_prune.pruning.shapes import config_of_student, pruned_config, pruned_configs, teacher_config

DEFAULT = Distill()

NAMED = (
    "student.criterion", "student.block_criterion", "student.blocks", "student.widths", "distill.logit_loss",
    "distill.hidden_loss",
)  # fmt: skip
"""Fields that name a registered part."""


def check_names(cell: Cell) -> None:
    """See that every part a cell names exists.

    Raises:
        ConfigError: one does not, or is not the kind that takes what it is given.
    """
    from lit_prune.importance.criteria import criteria
    from lit_prune.losses.hidden import hidden_losses
    from lit_prune.losses.logit import logit_loss_of
    from lit_prune.pruning.allocate import block_allocators, width_allocators

    _ = (
        criteria[cell.student.criterion],
        criteria[cell.student.block_criterion],
        block_allocators[cell.student.blocks],
        width_allocators[cell.student.widths],
        logit_loss_of(cell.distill.logit_loss, cell.distill.mix),
        hidden_losses[cell.distill.hidden_loss],
    )


def check_cells(cells: Iterable[Cell], execution: Execution) -> None:
    """Validate cells, and the flags of their run, from configs and the headers of files; compute and write nothing.

    Raises:
        ConfigError: if a cell or a flag is invalid.
    """
    cells = list(cells)
    check_execution(execution, [one for cell in cells for one in (cell, *sources_of(cell))])
    for cell in cells:
        check(cell)
    check_weights(cells)
    check_ids(cells, _given_tokenizer)
    check_same_tokens(cells, _given_tokenizer)


def _given_tokenizer(cell: Cell) -> Any:
    """The teacher's tokenizer; None if the teacher is still to be pretrained."""
    if cell.teacher.model is None:
        return None
    return loading.load_tokenizer(loading.locate(cell.teacher.model, cell.teacher.fingerprint, weights=False))


def check(cell: Cell) -> None:
    """See that names, sizes and models of a cell, and of the sources it comes from, are such as can be.

    Raises:
        ConfigError: one is not.
    """
    depth = len(sources_of(cell))
    for place, (asked, pruned) in enumerate(pruned_configs(cell)):
        with of_source(depth - place):
            check_names(asked)
            check_sizes(asked)
            check_source(asked)
            check_models(asked, pruned)


def check_source(cell: Cell) -> None:
    """See that a source, if there is one, has an effect.

    Raises:
        ConfigError: it has none.
    """
    source = source_of(cell)
    if source is None:
        return
    for name, value in (("model", cell.student.model), ("weights", cell.student.weights)):
        if value not in (None, "teacher"):
            raise ConfigError(f"source: has no effect where student.{name} is {value}; leave it null")
    if source.student.weights == "random" and not source.distill.steps:
        raise ConfigError("source.student.weights: random ones that are never trained say nothing of what to keep")


def check_models(cell: Cell, pruned: Any = None) -> None:
    """See that the student can be cut from the model with the config `pruned`, and imitate the teacher.

    Where it is not given, `pruned` is foretold.

    Raises:
        ConfigError: a shape the teacher does not have or its family forbids, another vocabulary, a layer map that
            does not fit, an objective without terms.
    """
    from lit_prune.distill.trainable import check_trained
    from lit_prune.pruning import prune

    config = teacher_config(cell)
    if cell.student.model is not None and cell.student.weights == "random":
        raise ConfigError("student.weights: random goes with a shape or a plan, not with student.model")
    check_positions(cell, config)
    if cell.student.model is None:
        pruned = pruned or pruned_config(cell)
        _check_cut(cell, pruned)
        num_blocks, student_config = prune.num_blocks(cell.student, pruned), pruned
    else:
        student_config = config_of_student(cell)
        check_positions(cell, student_config, "the student")
        num_blocks = student_config.num_hidden_layers
    if cell.student.model is None and student_config.vocab_size != config.vocab_size:
        raise ConfigError(
            f"source: its vocabulary has {student_config.vocab_size} entries, the teacher's {config.vocab_size}"
        )
    check_speed(cell, student_config, config)
    check_trained(cell.distill, student_config, num_blocks)
    check_objective(cell.distill, config, student_config, num_blocks)


def check_objective(distill: Distill, teacher: Any, student: Any, num_blocks: int) -> None:
    """See that an objective can be computed between models with these configs, the student's of `num_blocks` blocks.

    Raises:
        ConfigError: it cannot, or it names what would have no effect.
    """
    from lit_prune.distill.hidden_states import check_relation_heads, pairs_of, relations_of
    from lit_prune.distill.module import NOTHING_COMPARED
    from lit_prune.losses.weighting import check_weights

    pairs = pairs_of(distill, teacher.num_hidden_layers, num_blocks)
    relations = relations_of(distill, teacher.num_hidden_layers, num_blocks)
    if relations:
        check_relation_heads(distill, teacher, student)
    if distill.alpha and not pairs and not relations:
        raise ConfigError(f"distill.alpha: {NOTHING_COMPARED}")
    if (pairs or relations) and not distill.alpha:
        raise ConfigError(
            "distill.alpha: 0, so that embedding, mlp_input, block_output and attention would have no effect"
        )
    check_weights(distill)
    if distill.projection == "per_pair" and not pairs:
        raise ConfigError("distill.projection: per_pair is for embedding, mlp_input, block_output, and none is given")
    if distill.relation_heads != DEFAULT.relation_heads and not relations:
        raise ConfigError("distill.relation_heads: is for attention, and none is given")
    if distill.teacher_optim is not None and not distill.needs_teacher:
        raise ConfigError("distill.teacher_optim: w_logits and alpha are 0, so nothing is learned from the teacher")
    if distill.top_k is not None and not 2 <= distill.top_k <= teacher.vocab_size:
        raise ConfigError(
            f"distill.top_k: {distill.top_k} asked for; it is 2 to {teacher.vocab_size}, all of the vocabulary (of one "
            "token alone both are certain, and nothing would be learned)"
        )


def _check_cut(cell: Cell, config: Any) -> None:
    """See that the student can be cut from the model with this config: the teacher, or the student of its source."""
    from lit_prune.pruning import prune

    if cell.source is None:
        prune.check(cell.student, config)
        return
    try:
        check_positions(cell, config)
        prune.check(cell.student, config)
    except ConfigError as error:
        raise ConfigError(str(error).replace("the teacher", "its source")) from None


def check_positions(cell: Cell, config: Any, whose: str = "the teacher") -> None:
    """Check that no sequence of a cell is longer than a model with this config is made for.

    Raises:
        ConfigError: one is.
    """
    from lit_prune.models.positions import positions_of

    most = positions_of(config)
    sections = ("importance", "distill", "evaluation") if cell.distill.steps else ("importance", "evaluation")
    blocks = {name: getattr(cell, name).block for name in sections}
    if cell.teacher.correction is not None:
        blocks["teacher.correction"] = cell.teacher.correction.block
    for name, block in blocks.items():
        if most is not None and block > most:
            raise ConfigError(f"{name}.block: must be at most {most}, the positions of {whose}, got {block}")


def check_speed(cell: Cell, *configs: Any) -> None:
    """See that models with these configs have a position for every token of the requests that are timed, if any are.

    Raises:
        ConfigError: one has not.
    """
    from lit_prune.evaluate.throughput import check_positions

    if cell.evaluation.speed is not None:
        for config in configs:
            check_positions(cell.evaluation.speed, config)


def check_sizes(cell: Cell) -> None:
    """See that every number of things is one there can be.

    Raises:
        ConfigError: one is too small.
    """
    distill, importance, evaluation = cell.distill, cell.importance, cell.evaluation
    for name, value, least in (
        ("distill.batch", distill.batch, 1),
        ("distill.block", distill.block, 2),
        ("distill.steps", distill.steps, 0),
        ("importance.samples", importance.samples, 1),
        ("importance.block", importance.block, 2),
        ("evaluation.blocks", evaluation.blocks, 1),
        ("evaluation.block", evaluation.block, 2),
        ("evaluation.checks", evaluation.checks, 0),
        ("student.rounds", cell.student.rounds, 1),
        ("seed", cell.seed, 0),
        ("importance.seed", importance.seed, 0),
        *((f"teacher.correction.{name}", value, least) for name, value, least in _correction_sizes(cell)),
        *((f"evaluation.speed.{name}", value, least) for name, value, least in _speed_sizes(cell)),
    ):
        if value < least:
            raise ConfigError(f"{name}: {value} asked for, at least {least} is needed")
    if distill.steps and evaluation.checks > distill.steps:
        raise ConfigError(
            f"evaluation.checks: {evaluation.checks} asked for in {distill.steps} steps; at most one a step"
        )
    if distill.temperature <= 0:
        raise ConfigError(f"distill.temperature: {distill.temperature} asked for, it is above 0")
    for name in ("w_clm", "w_logits", "alpha"):
        weight = getattr(distill, name)
        if not isinstance(weight, str) and weight < 0:
            raise ConfigError(f"distill.{name}: {weight} asked for, at least 0 is needed")
    _check_optimizers(cell)


def _check_optimizers(cell: Cell) -> None:
    check_optim("distill.optim", cell.distill.optim)
    if cell.distill.teacher_optim is not None:
        check_optim("distill.teacher_optim", cell.distill.teacher_optim)
    for name, recipe in (("correction", cell.teacher.correction), ("pretraining", cell.teacher.pretraining)):
        if recipe is not None:
            check_optim(f"teacher.{name}.optim", recipe.optim)


def check_optim(place: str, optim: Optim) -> None:
    """See that an optimizer can be one; `place` is its section.

    Raises:
        ConfigError: it cannot.
    """
    for name, fine, allowed in (
        ("lr", optim.lr > 0, "above 0"),
        ("min_lr", optim.min_lr >= 0, "at least 0"),
        ("warmup", optim.warmup >= 0, "at least 0"),
        ("beta1", 0 <= optim.beta1 < 1, "at least 0 and below 1"),
        ("beta2", 0 <= optim.beta2 < 1, "at least 0 and below 1"),
        ("weight_decay", optim.weight_decay >= 0, "at least 0"),
        ("clip", optim.clip > 0, "above 0"),
    ):
        if not fine:
            raise ConfigError(f"{place}.{name}: {getattr(optim, name)} asked for, it is {allowed}")


def check_execution(execution: Execution, cells: Iterable[Cell]) -> None:
    """See that the flags of a run are such as can be, for all its cells.

    Raises:
        ConfigError: one is not.
    """
    import torch

    for flag, value, least in (
        ("--accumulate", execution.accumulate, 1),
        ("--workers", execution.workers, 0),
        ("--log-every", execution.log_every, 1),
        ("--checkpoint-seconds", execution.checkpoint_seconds, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag}: {value} asked for, at least {least} is needed")
    if execution.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("--accelerator gpu: there is none here; auto takes what there is")
    for cell in cells:
        recipes = {
            "distill": cell.distill if cell.distill.steps else None,
            "teacher.correction": cell.teacher.correction, "teacher.pretraining": cell.teacher.pretraining,
        }  # fmt: skip
        for place, recipe in recipes.items():
            if recipe is not None and recipe.batch % (execution.accumulate or 1):
                raise ConfigError(
                    f"--accumulate: {place}.batch, {recipe.batch}, cannot be cut into {execution.accumulate} parts"
                )


def _correction_sizes(cell: Cell) -> list[tuple[str, int, int]]:
    recipe = cell.teacher.correction
    return [("steps", recipe.steps, 1), ("batch", recipe.batch, 1), ("block", recipe.block, 2)] if recipe else []


def _speed_sizes(cell: Cell) -> list[tuple[str, int, int]]:
    least = {"batch": 1, "prompt": 1, "new": 2, "repeats": 1}
    speed = cell.evaluation.speed
    return [(name, getattr(speed, name), number) for name, number in least.items()] if speed else []


def check_tokens(cell: Cell, tokens: Path) -> None:
    """See that the corpus holds the calibration and validation sequences asked for.

    Raises:
        ConfigError: it does not.
    """
    from lit_prune.data.calibration import CalibrationData

    CalibrationData(tokens, samples=cell.importance.samples, block=cell.importance.block, seed=0)
    check_validation(cell, tokens, "corpus")
    if cell.teacher.correction is not None:
        CalibrationData(tokens, samples=1, block=cell.teacher.correction.block, seed=0, split="validation")


def check_validation(cell: Cell, tokens: Path, what: str) -> None:
    """See that a text holds the validation sequences asked for.

    Raises:
        ConfigError: it does not; `what` names the section it comes from.
    """
    from lit_prune.evaluate.validation import validation_data

    try:
        validation_data(cell.evaluation, tokens)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
