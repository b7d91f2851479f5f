"""Collect calibration statistics of a model: one pass for many, each stored at its own address."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_prune.config import EVIDENCE, Cell
from lit_prune.data.calibration import CalibrationData
from lit_prune.importance.collect import measure, passes_over
from lit_prune.importance.criteria import CalibrationStats
from lit_prune.importance.layer_ablation import removal_losses
from lit_prune.parallel.group import interleaved
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.metering import Spent
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pipeline.work import WORK
from lit_prune.pruning.shapes import pruned_configs
from lit_prune.store import Store
from lit_prune.store.address import key


def pending(cells: Iterable[Cell], store: Store) -> dict[str, frozenset[str]]:
    """Return calibration set -> statistics that the cells' missing students need."""
    found: dict[str, frozenset[str]] = {}
    for cell, config in itertools.chain.from_iterable(map(pruned_configs, cells)):
        if store.node(cell, "student").result is None:
            names = cell.prune.statistics(config)
            found[_set_of(cell)] = found.get(_set_of(cell), frozenset()) | names
    return found


def collect(cell: Cell, ctx: Context, model: Any, names: frozenset[str]) -> CalibrationStats:
    """Return statistics of the model that a cell prunes; the same pass also collects what pending students need.

    The time of a pass is divided equally among its statistics. Each has the whole `work_of_pass` in its env.json, since
    it would take as much alone.
    """
    wanted = names | ctx.pending.get(_set_of(cell), frozenset()) if names else names
    with contextlib.ExitStack() as claims:
        # A fixed order of leases: otherwise two processes could deadlock.
        nodes = {name: claims.enter_context(ctx.claim(cell, name)) for name in EVIDENCE if name in wanted}
        files = {name: node.folder / f"{name}.safetensors" for name, node in nodes.items()}
        missing = [name for name, node in nodes.items() if node.result is None]
        for group in passes_over(missing):
            ctx.say("calibrating")
            with ctx.clock.lap() as lap:
                measured = functools.partial(_measured, {name: files[name] for name in group})
                found = ctx.run_stage(Stage("importance", measured, inputs=_inputs), cell, ctx)
            share = round(lap.seconds / len(group), 2)
            for name in group:
                nodes[name].finish(
                    {"count": found["count"]}, seconds=share, work=WORK[name](cell), work_of_pass=found["work"].plain
                )  # fmt: skip

    def removal_losses(length: int) -> Tensor:
        stage = Stage("importance", functools.partial(_without_spans, length), inputs=_inputs)
        return ctx.run_stage(stage, cell, ctx)["losses"]

    return _stats(cell, model, {name: files[name] for name in names}, removal_losses)


def work_of(cell: Cell, ctx: Context, names: frozenset[str]) -> Spent | None:
    """Return the work of collecting statistics of the model that a cell prunes; None if older results lack it."""
    total = Spent()
    for group in passes_over(names):
        known = filter(None, (ctx.store.node(cell, name).env.get("work_of_pass") for name in group))
        found = [Spent(**plain) for plain in known]
        if len(found) < len(group):
            return None
        total += max(found, key=lambda spent: spent.seconds)
    return total


def collect_once(cell: Cell, ctx: Context, model: Any, names: frozenset[str]) -> CalibrationStats:
    """Return statistics of a model that exists only between two iterations of pruning; they are not kept."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in names}
        if files:
            ctx.say("calibrating")
            _measure(cell, ctx, model, files)
        return _stats(cell, model, files, lambda length: _removal_losses(length, cell, ctx, model))


def batches(cell: Cell, ctx: Context) -> Iterator[dict[str, Tensor]]:
    """Yield the calibration sequences of a cell as batches on the device."""
    for batch in _sequences(cell, ctx).predict_dataloader():
        yield {name: ids.to(ctx.device) for name, ids in batch.items()}


def _inputs(cell: Cell, ctx: Context) -> None:
    """Compute the model to be pruned and the tokens, which all ranks read."""
    artifacts.to_prune(cell, ctx)
    artifacts.tokens(cell, ctx)


def _measured(files: dict[str, Path], cell: Cell, ctx: Context) -> dict[str, Any]:
    """Write statistics of the model that a cell prunes; return the number of sequences and the work of all ranks."""
    model = ctx.load(artifacts.to_prune(cell, ctx))
    with ctx.meter.account() as spent:
        count = _measure(cell, ctx, model, files)
    flops = torch.tensor([[spent.forward_flops, spent.backward_flops]], dtype=torch.float64)
    spent.forward_flops, spent.backward_flops = interleaved(flops).sum(0).tolist()
    return {"count": count, "work": spent}


def _without_spans(length: int, cell: Cell, ctx: Context) -> dict[str, Any]:
    """Return the losses of the model that a cell prunes without each span of layers."""
    return {"losses": _removal_losses(length, cell, ctx, ctx.load(artifacts.to_prune(cell, ctx)))}


def _measure(cell: Cell, ctx: Context, model: Any, files: dict[str, Path]) -> int:
    count = ctx.counter("calibrating", cell.calibration.num_sequences, "sequence")
    return measure(model, _sequences(cell, ctx), files, ctx.execution, count, cell.calibration.precision)


def _removal_losses(length: int, cell: Cell, ctx: Context, model: Any) -> Tensor:
    count = ctx.counter("leaving out spans of layers", cell.calibration.num_sequences, "sequence")
    return removal_losses(model, _sequences(cell, ctx), length, ctx.execution, count, cell.calibration.precision)


def _stats(
    cell: Cell, model: Any, files: dict[str, Path], removal_losses: Callable[[int], Tensor]
) -> CalibrationStats:  # fmt: skip
    statistics, wanted = {name: load_file(path) for name, path in files.items()}, cell.calibration
    return CalibrationStats(model, statistics, wanted.num_sequences, wanted.seed, removal_losses)


def _sequences(cell: Cell, ctx: Context) -> CalibrationData:
    wanted = cell.calibration
    return CalibrationData(
        artifacts.tokens(cell, ctx), num_sequences=wanted.num_sequences, seq_len=wanted.seq_len, seed=wanted.seed
    )


def _set_of(cell: Cell) -> str:
    return key(cell, "importance")
