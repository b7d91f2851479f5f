"""Collect calibration statistics of a model: one pass for many, each stored at its own address."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lit_prune.config import EVIDENCE, Cell
from lit_prune.data.calibration import CalibrationData
from lit_prune.importance.collect import measure, passes_over
from lit_prune.importance.criteria import CalibrationStats
from lit_prune.importance.layer_ablation import removal_losses
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.metering import Spent
from lit_prune.pipeline.stage import Context
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
            with ctx.clock.lap() as lap, ctx.meter.account() as spent:
                count = _measure(cell, ctx, model, {name: files[name] for name in group})
            share = round(lap.seconds / len(group), 2)
            for name in group:
                nodes[name].finish({"count": count}, seconds=share, work=WORK[name](cell), work_of_pass=spent.plain)
    return _stats(cell, ctx, model, {name: files[name] for name in names})


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
            _measure(cell, ctx, model, files)
        return _stats(cell, ctx, model, files)


def batches(cell: Cell, ctx: Context) -> Iterator[dict[str, Tensor]]:
    """Yield the calibration sequences of a cell as batches on the device."""
    for batch in _sequences(cell, ctx).predict_dataloader():
        yield {name: ids.to(ctx.device) for name, ids in batch.items()}


def _measure(cell: Cell, ctx: Context, model: Any, files: dict[str, Path]) -> int:
    ctx.say("calibrating")
    count = ctx.counter("calibrating", cell.calibration.num_sequences, "sequence")
    return measure(model, _sequences(cell, ctx), files, ctx.execution, count, cell.calibration.precision)


def _stats(cell: Cell, ctx: Context, model: Any, files: dict[str, Path]) -> CalibrationStats:
    count = ctx.counter("leaving out spans of layers", cell.calibration.num_sequences, "sequence")
    return CalibrationStats(
        model=model, statistics={name: load_file(path) for name, path in files.items()},
        count=cell.calibration.num_sequences, seed=cell.calibration.seed,
        removal_losses=lambda length: removal_losses(
            model, _sequences(cell, ctx), length, ctx.execution, count, cell.calibration.precision
        ),
    )  # fmt: skip


def _sequences(cell: Cell, ctx: Context) -> CalibrationData:
    wanted = cell.calibration
    return CalibrationData(
        artifacts.tokens(cell, ctx), num_sequences=wanted.num_sequences, seq_len=wanted.seq_len, seed=wanted.seed
    )


def _set_of(cell: Cell) -> str:
    return key(cell, "importance")
