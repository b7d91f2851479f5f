"""Prune the student of a cell: compute its plan and cut the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_prune.config import Cell, DynamicLoading
from lit_prune.distill.callbacks import Spending
from lit_prune.distill.module import cross_entropy_trainer
from lit_prune.distill.train import fit
from lit_prune.evaluate.validation import sizes_of
from lit_prune.importance.criteria import CalibrationStats
from lit_prune.models.random_weights import random_model
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.metering import Spent
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pipeline.stages.calibrate import batches, collect, collect_once, work_of
from lit_prune.pruning.context import Fit, PruneContext, Pruned
from lit_prune.pruning.masks import Masks, apply_masks, both, load_masks, save_masks, sparsity_of
from lit_prune.pruning.shapes import teacher_config
from lit_prune.pruning.surgery import cut
from lit_prune.store.journal import Journal
from lit_prune.store.store import PRUNING

TRAINING, MEASURED = "training", "measured.json"
"""Folder of the trainings of a method, and file of what it has measured, in that of the student."""


def run(cell: Cell, ctx: Context) -> dict[str, Any]:
    """Write the plan, the student and its masks; return the requested and the achieved sizes."""
    location = artifacts.to_prune(cell, ctx)
    whole = ctx.load(location)
    found = _pruned(cell, ctx, whole)
    if found.plan is not None:
        found.plan.save(ctx.folder / "plan.json")
    keeps_all = found.model is whole
    masks = _masks(found, load_masks(location), whole.config)
    if not keeps_all:  # else the whole model is loaded from its own folder
        apply_masks(found.model, masks)
        found.model.save_pretrained(ctx.folder / "model")
        save_masks(masks, ctx.folder / "model")
        artifacts.tokenizer(cell, ctx).save_pretrained(ctx.folder / "model")
    sizes = sizes_of(found.model)
    return {
        "whole": keeps_all,
        "requested": found.requested,
        "achieved": found.achieved,
        "parameters": sizes["parameters"],
        **(sparsity_of(found.model, masks) if masks else {}),
        **_shares("", sizes, sizes_of(whole if cell.parent is None else _weightless(teacher_config(cell)))),
        **({} if cell.parent is None else _shares("_of_parent", sizes, sizes_of(whole))),
    }


STAGE = Stage("student", run)


def _pruned(cell: Cell, ctx: Context, whole: Any) -> Pruned:
    """Prune a model, and note in env.json what that took, with the work of the statistics that were read.

    It is null if the method was resumed or a statistic was collected by an earlier version, whose work is unknown.
    """
    read: set[str] = set()
    calibrated, resumed = False, any((ctx.folder / name).exists() for name in (TRAINING, MEASURED))

    def stats_of(model: Any, names: frozenset[str]) -> CalibrationStats:
        nonlocal calibrated
        calibrated = calibrated or bool(names)
        if model is not whole:
            return collect_once(cell, ctx, model, names)
        read.update(names)
        return collect(cell, ctx, model, names)

    def sequences() -> Iterator[dict[str, Tensor]]:
        nonlocal calibrated
        calibrated = True
        return batches(cell, ctx)

    journal = Journal(ctx.folder / MEASURED, ctx.execution.checkpoint_seconds, ctx.spend)
    with ctx.meter.account() as spent, journal as measured:
        services = PruneContext(
            stats_of, sequences, _fit(cell, ctx, spent), cross_entropy_trainer, ctx.device, cell.calibration.seed,
            ctx.say, ctx.counter, measured,
        )  # fmt: skip
        found = cell.prune.prune(whole, services)
    statistics = work_of(cell, ctx, frozenset(read))
    if calibrated:
        spent.tokens += cell.calibration.num_sequences * cell.calibration.seq_len
    ctx.env[PRUNING] = None if resumed or statistics is None else (spent + statistics).plain
    return found


def _fit(cell: Cell, ctx: Context, spent: Spent) -> Fit:
    """Return the training service of a method; its n-th training has a folder of its own in that of the stage.

    The tokens that it reads are added to `spent`.
    """
    numbers, data = itertools.count(1), cell.calibration

    def train(module: Any, what: str, *, max_steps: int, batch_size: int, loading: DynamicLoading | None = None) -> Any:
        count = ctx.counter(what, max_steps, "step")
        spent.tokens += max_steps * batch_size * data.seq_len
        fit(
            module, artifacts.tokens(cell, ctx), ctx.folder / TRAINING / str(next(numbers)), max_steps=max_steps,
            batch_size=batch_size, seq_len=data.seq_len, seed=data.seed, precision=data.precision,
            execution=ctx.execution, on_progress=lambda step, row: count(step), callbacks=[Spending(ctx.spend)],
            loading=loading,
        )  # fmt: skip
        return module

    return train


def _masks(found: Pruned, before: Masks, config: Any) -> Masks:
    """Return the masks of a student of a model with this config and the masks `before`: what was zero stays zero."""
    merges = found.plan is not None and any(layer.merges for layer in found.plan.layers)
    if before and (merges or (found.plan is None and found.masks is None)):
        raise RuntimeError("the zeros of a sparse model do not survive this pruning")
    if found.plan is not None:
        before = cut(before, found.plan, config)
    return both(before, found.masks or {})


def untrained(cell: Cell, device: str = "cpu") -> Any:
    """Return a student of the requested shape with random weights, to train from scratch."""
    return random_model(cell.prune.config_of(teacher_config(cell)), device, seed=cell.seed)


def _shares(name: str, sizes: dict[str, int], whole: dict[str, int]) -> dict[str, float]:
    shares = {kind: sizes[kind] / whole[kind] for kind in ("parameters", "parameters_without_embeddings")}
    return {kind.replace("parameters", f"share{name}"): share for kind, share in shares.items()}


def _weightless(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
