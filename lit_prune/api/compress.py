"""Prune or distill one model through the pipeline of the tables. Imports torch only to compute something."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lit_prune.api.output import Compressed, write
from lit_prune.config import Cell, ConfigError, Execution, expand
from lit_prune.config.overrides import BUDGETS, override
from lit_prune.config.profiles import load_profile
from lit_prune.config.prune import DEFAULT_METHOD
from lit_prune.config.table import UNPRUNED, WHOLE
from lit_prune.pipeline.expand import Entry
from lit_prune.progress import ProgressOf, Silent
from lit_prune.store import DEFAULT_ROOT, Node, Store

Wandb = Literal["auto", "online", "offline", "disabled"]
SIZES = {
    "num_parameters": "prune.num_parameters", "hidden_size": "prune.hidden_size",
    "intermediate_size": "prune.intermediate_size",
    "num_attention_heads": "prune.num_attention_heads", "num_hidden_layers": "prune.num_hidden_layers",
}  # fmt: skip
"""Sizes that `prune` accepts -> fields of a cell."""
OTHER_SIZES = ("prune.num_key_value_heads", "prune.drop_layers", "prune.plan_path")
"""Further fields that decide the size of a student of the default method."""
DEFAULT_SHARE = 0.5
"""Share of the parameters that the default method keeps if no size is given; other methods have sizes of their own."""
SPARSITY = "prune.sparsity"
"""Field of a cell for the share of weights to set to zero."""


def prune(
    model: Any,
    *,
    out: str | Path | None = None,
    method: str = DEFAULT_METHOD,
    num_parameters: int | float | None = None,
    hidden_size: int | float | None = None,
    intermediate_size: int | float | None = None,
    num_attention_heads: int | float | None = None,
    num_hidden_layers: int | float | None = None,
    sparsity: float | None = None,
    corpus: str | Path = "python",
    seq_len: int = 256,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    profile: str | None = None,
    store: str | Path = DEFAULT_ROOT,
    execution: Execution | None = None,
    progress: ProgressOf = Silent,
) -> Compressed:
    """Prune a model and measure it before and after; results are kept in the store.

    Args:
        model: a teacher by name, a folder, a .gguf file, a hub id, or a transformers model in memory.
        out: folder to copy the student to, with plan.json and a model card; must be empty or not exist.
        method: pruning method, one of `lit_prune.registry.methods`; a size that it has no setting for is refused.
        num_parameters: parameters to keep, a count or a share in (0, 1]. Without another size, the default method
            prunes hidden channels and MLP neurons to the same share; without any size it keeps half of the parameters.
        hidden_size: hidden channels to keep, a count or a share; likewise `intermediate_size` (MLP neurons of a layer),
            `num_attention_heads` (query heads of a layer) and `num_hidden_layers`.
        sparsity: share of the weights of the linears in the layers to set to zero, for methods that zero weights.
        corpus: text for calibration and validation: python, readmes, a file, a folder or a hub data set.
        seq_len: tokens in a sequence of calibration and validation.
        tokenizer: the tokenizer of a `model` in memory.
        settings: further fields of the cell by dotted path, such as {"calibration.num_sequences": 512}.
        profile: name or file of a profile to start from; the defaults of a cell otherwise.

    Raises:
        ConfigError: if the request is invalid, before anything is computed.
        RuntimeError: if the computation fails.
    """
    given = (num_parameters, hidden_size, intermediate_size, num_attention_heads, num_hidden_layers)
    sizes = dict(zip(SIZES, given, strict=True))
    settings = dict(settings or {})
    if method != DEFAULT_METHOD:  # its sizes have defaults
        sizes = {name: size for name, size in sizes.items() if size is not None}
    elif not {*given} - {None} and not {*SIZES.values(), *OTHER_SIZES} & {*settings}:
        sizes["num_parameters"] = num_parameters = DEFAULT_SHARE
    others = [size for name, size in sizes.items() if name != "num_parameters" and size is not None]
    if method == DEFAULT_METHOD and num_parameters is not None and not others:
        sizes["hidden_size"] = sizes["intermediate_size"] = "auto"  # type: ignore[assignment]
    if not {f"distill.{name}" for name in BUDGETS} & {*settings}:
        _refuse(settings, "distill", "without distill.max_steps, as nothing is trained")
    opened, target = Store(store), _target(out)
    requested = {"prune.method": method} | {SIZES[name]: size for name, size in sizes.items()} | _text(corpus, seq_len)
    requested |= {} if sparsity is None else {SPARSITY: sparsity}
    place = _place(model, tokenizer, opened, "model")
    cell = override(_base(profile), requested | {"teacher.model": place, "distill.max_steps": 0} | settings)
    return _compress(cell, opened, target, execution or Execution(), progress, "disabled", "prune")


def distill(
    student: Any,
    *,
    teacher: Any,
    out: str | Path | None = None,
    corpus: str | Path = "python",
    max_steps: int = 100,
    seq_len: int = 256,
    batch_size: int = 8,
    logit_loss: str = "kld",
    lr: float = 1e-3,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    profile: str | None = None,
    store: str | Path = DEFAULT_ROOT,
    execution: Execution | None = None,
    progress: ProgressOf = Silent,
    wandb: Wandb = "disabled",
) -> Compressed:
    """Distill a teacher into a student, resume if interrupted, and measure both.

    Args:
        student: the model to train: a folder, a .gguf file, a hub id, or a transformers model in memory.
        teacher: the model to imitate, with the same tokenizer.
        out: folder to copy the trained student to, with a model card; must be empty or not exist.
        corpus: text to train and validate on.
        max_steps: optimizer steps.
        seq_len: tokens in a sequence; `batch_size` sequences make a step.
        logit_loss: loss between the output distributions; `lit_prune.registry.names()` lists all.
        lr: peak learning rate of AdamW.
        tokenizer: the tokenizer of models in memory.
        settings: further fields of the cell by dotted path, such as {"distill.temperature": 2.0}.
        profile: name or file of a profile to start from; the defaults of a cell otherwise.
        wandb: where to log the run; auto is online if there is an API key, else offline.

    Raises:
        ConfigError: if the request is invalid, before anything is computed.
        RuntimeError: if the computation fails.
    """
    _refuse(settings or {}, "prune", "for a student that is given")
    if wandb not in get_args(Wandb):
        raise ConfigError(f"wandb: must be one of {', '.join(get_args(Wandb))}, got {wandb!r}")
    opened, target = Store(store), _target(out)
    requested = _text(corpus, seq_len) | {
        "teacher.model": _place(teacher, tokenizer, opened, "teacher"),
        "prune.init_from": _place(student, tokenizer, opened, "student"),
        "distill.max_steps": max_steps, "distill.seq_len": seq_len, "distill.batch_size": batch_size,
        "distill.logit_loss": logit_loss, "distill.optimizer.lr": lr, "evaluation.num_validations": 1,
    }  # fmt: skip
    cell = override(_base(profile), requested | dict(settings or {}))
    return _compress(cell, opened, target, execution or Execution(), progress, wandb, "distill")


def _base(profile: str | None) -> Cell:
    return override(Cell() if profile is None else load_profile(profile).cell, WHOLE)


def _refuse(settings: Mapping[str, Any], section: str, where: str) -> None:
    """Refuse settings of a section that has no effect.

    Raises:
        ConfigError: if there is one.
    """
    for path, value in settings.items():
        if path.startswith(f"{section}."):
            raise ConfigError(f"{path}: must not be set {where}, got {value!r}")


def _text(corpus: str | Path, seq_len: int) -> dict[str, Any]:
    return {"corpus.path": corpus, "calibration.seq_len": seq_len, "evaluation.seq_len": seq_len}


def _target(out: str | Path | None) -> Path | None:
    """Return the folder to write to.

    Raises:
        ConfigError: if it is not empty or cannot be written.
    """
    if out is None:
        return None
    target = expand(out)
    try:
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise ConfigError(f"--out: must be an empty folder or not exist, got {target}")
        with tempfile.TemporaryFile(dir=next(place for place in (target, *target.parents) if place.exists())):
            pass
    except OSError as error:
        raise ConfigError(f"--out: must be a folder that can be written, got {target} ({error.strerror})") from None
    return target


def _place(model: Any, tokenizer: Any, store: Store, name: str) -> str:
    """Return the name of a model; a model in memory is saved to the store under the digest of its files.

    Raises:
        ConfigError: if it is neither a name nor a model with a tokenizer.
    """
    if isinstance(model, (str, Path)):
        return str(model)
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(f"{name}: must be a name, a folder or a transformers model, got {type(model).__name__}")
    if tokenizer is None:
        raise ConfigError("tokenizer: must be given with a model in memory")
    from lit_prune.models.files import Place, fingerprint_of

    folder = store.root / "models"
    store.check_writable(folder)
    scratch = folder / f".{name}.{os.getpid()}"
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        target = folder / fingerprint_of(Place(str(scratch)))[:12]
        if not target.is_dir():
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return str(target)


def _compress(
    cell: Cell, store: Store, target: Path | None, execution: Execution, progress: ProgressOf, wandb: Wandb, name: str
) -> Compressed:
    """Compute the cell and its teacher's, and write the student to `target`."""
    from lit_prune.pipeline.resolve import Resolver

    cell = Resolver().pin(cell)
    entries = [Entry("teacher", 0, override(cell, UNPRUNED), {}, reference=True), Entry("student", 0, cell, {})]
    missing = [entry for entry in entries if entry.node(store).result is None]
    if entries[1] not in missing and not _student_folder(store, cell).is_dir():
        missing.append(entries[1])  # a table has evaluated and then removed it
    if missing:
        _run(missing, store, execution, progress, wandb, name)
    teacher, student = (entry.node(store) for entry in entries)
    found = Compressed(
        _student_folder(store, cell), cell, student.result or {}, teacher.result or {}, student.env,
        None if cell.prune.init_from is not None else store.node(cell, "student").folder / "plan.json",
    )  # fmt: skip
    return found if target is None else write(found, target, name)


def _run(
    missing: list[Entry], store: Store, execution: Execution, progress: ProgressOf, wandb: Wandb, name: str
) -> None:
    """Compute the missing cells.

    Raises:
        RuntimeError: if one fails.
    """
    from lit_prune.api.compute import compute

    def begin() -> None:
        _check_smaller(missing[-1].cell)

    compute(missing, store, execution, progress, wandb, name, begin, keep_students=True)
    for entry in missing:
        node: Node = entry.node(store)
        if node.result is None:
            raise RuntimeError(f"the {entry.row} could not be computed ({node.error or 'stopped'}); see {node.folder}")


def _check_smaller(cell: Cell) -> None:
    """Check that the student does not keep the whole teacher, which leaves nothing to write."""
    from lit_prune.pruning.shapes import config_of_student, keeps_all, teacher_config

    given = cell.prune.init_from is not None or cell.prune.plan_path is not None
    if not given and not cell.prune.sparse and keeps_all(config_of_student(cell), teacher_config(cell)):
        raise ConfigError(f"prune: must remove something, got sizes that keep all of {cell.teacher.model}")


def _student_folder(store: Store, cell: Cell) -> Path:
    stage = "cell" if cell.distill.max_steps else "student"
    return store.node(cell, stage).folder / "model"
