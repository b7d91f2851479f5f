"""The two stages between a teacher and its retraining: what calibration says about it, and the student cut from it."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_prune.config import EVIDENCE, Cell
from lit_prune.data.calibration import CalibrationData
from lit_prune.evaluate.validation import sizes_of
from lit_prune.importance.collect import measure
from lit_prune.importance.criteria import CalibrationStats
from lit_prune.importance.layer_ablation import removal_losses
from lit_prune.models import loading
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.prune import config_of, evidence_names, make_plan
from lit_prune.pruning.shapes import pruned_configs, teacher_config
from lit_prune.store.address import key

if TYPE_CHECKING:
    from lit_prune.pipeline.runner import Runner

_SIZES = ("layers", "hidden", "neurons", "heads", "kv_groups")


class Students:
    """Measures and cuts for a runner, whose store, teacher, tokens and progress it uses."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.store = runner, runner.store
        self._waiting: dict[Any, frozenset[str]] = {}

    def expect(self, cells: Iterable[Cell]) -> None:
        """Take note of what the students still to be cut need of each calibration set, to measure it in one pass."""
        for cell, pruned in itertools.chain.from_iterable(map(pruned_configs, cells)):
            if self.store.node(cell, "student").result is None:
                names = evidence_names(cell.student, pruned)
                self._waiting[_set_of(cell)] = self._waiting.get(_set_of(cell), frozenset()) | names

    def student(self, cell: Cell) -> str:
        """The folder of the student to be trained: cut from the teacher or a source's student, or a given model."""
        if cell.student.model is not None:
            return loading.locate(cell.student.model, cell.student.fingerprint, field="student.model")
        done = self.store.node(cell, "student")
        if done.verified is None:
            whole = self.runner.load(self.runner.pruned(cell))
            evidence = self.evidence(cell, whole, evidence_names(cell.student, whole.config))
            with self.runner.claim(cell, "student") as node:
                if node.result is None:
                    self.runner.tell("pruning")
                    found = self._prune(cell, whole, evidence, node.folder)
                    node.finish(found)
        result = done.result or {}
        return self.runner.pruned(cell) if result.get("whole") else str(done.folder / "model")

    def new(self, cell: Cell) -> Any:
        """A student of the shape asked for with random weights: training from scratch."""
        smaller = config_of(cell.student, teacher_config(cell))
        torch.manual_seed(cell.seed)
        return AutoModelForCausalLM.from_config(smaller, dtype=torch.float32).eval()

    def evidence(self, cell: Cell, model: Any, names: frozenset[str]) -> CalibrationStats:
        """What calibration says about the model to be pruned; what waiting students need of the same set comes too."""
        wanted = names | self._waiting.get(_set_of(cell), frozenset()) if names else names
        with contextlib.ExitStack() as claims:
            # Always in the same order: two processes that each hold what the other waits for would wait for ever.
            nodes = {name: claims.enter_context(self.runner.claim(cell, name)) for name in EVIDENCE if name in wanted}
            files = {name: node.folder / f"{name}.safetensors" for name, node in nodes.items()}
            missing = {name: files[name] for name, node in nodes.items() if node.result is None}
            if missing:
                count = self._measure(cell, model, missing)
                for name in missing:
                    nodes[name].finish({"count": count})
        return self._evidence(cell, model, {name: files[name] for name in names})

    def _prune(self, cell: Cell, whole: Any, evidence: CalibrationStats, folder: Path) -> dict[str, Any]:
        """Plan and cut; plan and student go to `folder`. Returns what was asked for and what was achieved."""

        def evidence_of(model: Any, names: frozenset[str]) -> CalibrationStats:
            return evidence if model is whole else self._passing(cell, model, names)

        plan = make_plan(whole, cell.student, evidence_of)
        plan.save(folder / "plan.json")
        student, keeps_all = whole, plan == PrunePlan.everything(plan.original)
        if not keeps_all:  # else it is evaluated and trained from where the whole model lies
            student = surgery.apply(whole, plan)
            student.save_pretrained(folder / "model")
            self.runner.tokenizer(cell).save_pretrained(folder / "model")
        sizes = sizes_of(student)
        return {
            "whole": keeps_all,
            "requested": {name: getattr(cell.student, name) for name in (*_SIZES, "parameters")},
            "achieved": {name: getattr(plan.kept, name) for name in _SIZES},
            "parameters": sizes["parameters"],
            **_shares("", sizes, sizes_of(whole if cell.source is None else _weightless(teacher_config(cell)))),
            **({} if cell.source is None else _shares("_of_source", sizes, sizes_of(whole))),
        }

    def _passing(self, cell: Cell, model: Any, names: frozenset[str]) -> CalibrationStats:
        """Evidence about a model that is only a step on the way to a student: measured, and not kept."""
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.safetensors" for name in names}
            if files:
                self._measure(cell, model, files)
            return self._evidence(cell, model, files)

    def _measure(self, cell: Cell, model: Any, files: dict[str, Path]) -> int:
        self.runner.tell("calibrating")
        return measure(model, self._calibration(cell), files, self.runner.execution, self._teller(cell, "calibrating"))

    def _evidence(self, cell: Cell, model: Any, files: dict[str, Path]) -> CalibrationStats:
        tell = self._teller(cell, "leaving out spans of blocks")
        return CalibrationStats(
            model=model, statistics={name: load_file(path) for name, path in files.items()},
            count=cell.importance.samples, seed=cell.importance.seed,
            removal_losses=lambda length: removal_losses(
                model, self._calibration(cell), length, self.runner.execution, tell
            ),
        )  # fmt: skip

    def _calibration(self, cell: Cell) -> CalibrationData:
        wanted = cell.importance
        return CalibrationData(self.runner.tokens(cell), samples=wanted.samples, block=wanted.block, seed=wanted.seed)

    def _teller(self, cell: Cell, what: str) -> Callable[[int], None]:
        return self.runner.counter(what, cell.importance.samples, "sequence")


def _set_of(cell: Cell) -> str:
    return key(cell, "importance")


def _shares(name: str, sizes: dict[str, int], whole: dict[str, int]) -> dict[str, float]:
    shares = {kind: sizes[kind] / whole[kind] for kind in ("parameters", "parameters_without_embeddings")}
    return {kind.replace("parameters", f"share{name}"): share for kind, share in shares.items()}


def _weightless(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
