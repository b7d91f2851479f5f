"""Materialise a cell: each stage is found by its address or computed from the stages upstream of it."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from lit_prune.config import Cell, key
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.tokens import write_tokens
from lit_prune.distill.train import train
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.execution import Execution
from lit_prune.grid import Entry
from lit_prune.importance.calibrate import calibrate, load_moments
from lit_prune.importance.criteria import Evidence, criteria
from lit_prune.models import teacher as teachers
from lit_prune.preflight import check_models, check_names, check_sizes, check_tokens
from lit_prune.pretrain import prepare, pretrain
from lit_prune.progress import Bar
from lit_prune.pruning import surgery
from lit_prune.pruning.allocate import uniform
from lit_prune.pruning.shape import target
from lit_prune.store import Busy, Node, Store
from lit_prune.tracking import Mirror


class Runner:
    """Computes what is missing in a store, one stage at a time, each at most once."""

    def __init__(self, store: Store, execution: Execution, bar: Bar, mirror: Mirror) -> None:
        self.store, self.execution, self.bar, self.mirror = store, execution, bar, mirror
        self._doing = ""
        self._failed: dict[tuple[str, str], Exception] = {}
        self._load = functools.lru_cache(maxsize=1)(teachers.load_model)

    def check(self, cells: Iterable[Cell]) -> None:
        """See that every cell can be computed, before any of them is.

        Raises:
            ConfigError: one cannot.
        """
        checked: set[Any] = set()
        for cell in cells:
            check_names(cell)
            check_sizes(cell)
            check_models(cell)
            question = (cell.corpus, cell.teacher, cell.importance, cell.evaluation)
            if question not in checked:
                check_tokens(cell, self.tokens(cell))
                checked.add(question)

    def run(self, entries: Iterable[Entry]) -> int:
        """Compute the missing cells; one that fails is remembered and the others go on. Returns how many failed."""
        failed = 0
        for entry in entries:
            self._doing = f"{entry.row}, seed {entry.seed}"
            steps_before = self.bar.done
            try:
                self.cell(entry)
            except Busy as busy:
                self.bar.say(str(busy))
            except Exception as error:
                failed += 1
                message = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
                self.bar.say(f"{self._doing} failed: {message}")
                with contextlib.suppress(OSError):  # a full disk has no room for the reason either
                    self.store.node(entry.cell, "cell").fail(message)
            self.bar.at(max(self.bar.done, steps_before + entry.cell.distill.steps), self._doing)
        return failed

    @contextlib.contextmanager
    def _claim(self, cell: Cell, stage: str) -> Iterator[Node]:
        """A stage several cells share: waited for where another process computes it; failed once, failed for all."""
        address = stage, key(cell, stage)
        if address in self._failed:
            raise self._failed[address]
        try:
            with self.store.claim(cell, stage, wait=True) as node:
                yield node
        except Exception as error:
            self._failed[address] = error
            raise

    def teacher(self, cell: Cell) -> str:
        """The folder of the teacher; one given by its recipe is trained."""
        if cell.teacher.model is not None:
            return teachers.locate(cell.teacher.model, cell.teacher.fingerprint)
        assert cell.teacher.pretraining is not None
        recipe, start = cell.teacher.pretraining, self.bar.done
        with self._claim(cell, "teacher") as node:
            if node.result is None:
                tell = self._teller("pretraining the teacher", start, recipe.steps)
                node.finish(pretrain(recipe, node.folder, self.execution, tell))
        return str(node.folder / "model")

    def tokenizer(self, cell: Cell) -> Any:
        """The teacher's tokenizer, which of one that is not trained yet is made first."""
        if cell.teacher.pretraining is None:
            return teachers.load_tokenizer(self.teacher(cell))
        with self._claim(cell, "teacher") as node:
            return prepare(cell.teacher.pretraining, node.folder)

    def tokens(self, cell: Cell) -> Path:
        """The folder of the corpus in the teacher's tokens."""
        node = self.store.node(cell, "tokens")
        if node.result is None:
            self._tell("tokenising")
            tokenizer = self.tokenizer(cell)
            with self._claim(cell, "tokens") as node:
                if node.result is None:  # as it no longer is where another process was waited for
                    tell = self._counter("tokenising", "train tokens")
                    node.finish(write_tokens(cell.corpus, tokenizer, node.folder, tell))
        return node.folder

    def importance(self, cell: Cell) -> Node:
        """The calibration pass."""
        tokens, model = self.tokens(cell), self._load(self.teacher(cell))
        with self._claim(cell, "importance") as node:
            if node.result is None:
                self._tell("calibrating")
                wanted = cell.importance
                data = CalibrationData(tokens, samples=wanted.samples, block=wanted.block, seed=wanted.seed)
                tell = self._counter("calibrating", f"of {wanted.samples} sequences")
                count = calibrate(model, data, node.folder / "moments.safetensors", self.execution, tell)
                node.finish({"count": count})
        return node

    def student(self, cell: Cell) -> str:
        """The folder of the student to be trained: cut from the teacher, or a given model."""
        if cell.student.model is not None:
            return teachers.locate(cell.student.model, cell.student.fingerprint)
        done = self.store.node(cell, "student")
        if done.result is None:
            teacher, importance = self._load(self.teacher(cell)), self.importance(cell)
            with self._claim(cell, "student") as node:
                if node.result is None:
                    self._tell("pruning")
                    node.finish(prune(cell, teacher, importance, node.folder))
        return str(done.folder / "model")

    def cell(self, entry: Entry) -> dict[str, Any]:
        """The measurement itself.

        Raises:
            Busy: another process works on it.
            Diverged: the loss is no longer a number.
        """
        cell = entry.cell
        student, tokens = self.student(cell), self.tokens(cell)
        with self.store.claim(cell, "cell") as node:
            if node.result is not None:
                return node.result
            started = time.perf_counter()
            model = teachers.load_model(student)
            if cell.distill.steps:
                self._distill(entry, model, tokens, node)
            result = self._evaluate(cell, model, tokens)
            self.mirror.conclude(entry, result)
            return node.finish(result, seconds=round(time.perf_counter() - started, 1))

    def _distill(self, entry: Entry, model: Any, tokens: Path, node: Node) -> None:
        cell = entry.cell
        needs_teacher = cell.distill.w_logits or cell.distill.alpha
        teacher = self._load(self.teacher(cell)) if needs_teacher else None
        with self.mirror.logger(entry) as loggers:
            train(
                model, teacher, cell.distill, tokens, node.folder, seed=cell.seed, execution=self.execution,
                tell=self._teller(self._doing, self.bar.done, cell.distill.steps), loggers=loggers,
            )  # fmt: skip
        model.save_pretrained(node.folder / "model")

    def _evaluate(self, cell: Cell, model: Any, tokens: Path) -> dict[str, Any]:
        wanted = cell.evaluation
        data = CalibrationData(tokens, samples=wanted.blocks, block=wanted.block, seed=0, split="validation")
        loss, num_tokens = language_model_loss(model.to(_device(self.execution)), data.predict_dataloader())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}")
        return {
            "lm_loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "num_tokens": num_tokens,
            "parameters": model.num_parameters(),
            "parameters_without_embeddings": _without_embeddings(model),
        }

    def _tell(self, what: str) -> None:
        self.bar.say(f"{self._doing}: {what}" if self._doing else what)

    def _counter(self, what: str, unit: str) -> Callable[[int], None]:
        """Progress of work that is no optimizer step: said, but not counted on the bar."""
        return lambda count: self.bar.at(self.bar.done, f"{self._doing} {what}, {count:,} {unit}".strip())

    def _teller(self, what: str, start: int, steps: int) -> Callable[[int, dict[str, float]], None]:
        def tell(step: int, row: dict[str, float]) -> None:
            loss = f", loss {row['loss']:.3f}" if row else ""
            self.bar.at(start + step, f"{what}{loss}")

        return tell


def prune(cell: Cell, teacher: Any, importance: Node, folder: Path) -> dict[str, Any]:
    """Score, plan and cut; plan and student go to `folder`. Returns what was asked for and what was achieved."""
    assert importance.result is not None
    evidence = Evidence(
        teacher,
        load_moments(importance.folder / "moments.safetensors"),
        importance.result["count"],
        cell.importance.seed,
    )
    shape = target(cell.student, teacher.config)
    plan = uniform(criteria[cell.student.criterion](evidence, cell.student), shape, teacher.config)
    plan.save(folder / "plan.json")
    student = surgery.apply(teacher, plan)
    student.save_pretrained(folder / "model")
    return {
        "requested": {
            "hidden": cell.student.hidden,
            "neurons": cell.student.neurons,
            "heads": cell.student.heads,
        },
        "achieved": {"hidden": plan.kept.hidden, "neurons": plan.kept.neurons, "heads": plan.kept.heads},
        "parameters": student.num_parameters(),
        "share_without_embeddings": _without_embeddings(student) / _without_embeddings(teacher),
    }


def _without_embeddings(model: Any) -> int:
    """Parameters but those of the embedding and of the head."""
    tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def _device(execution: Execution) -> torch.device:
    if execution.accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def planned_steps(store: Store, entries: Iterable[Entry]) -> int:
    """Optimizer steps of all cells that are missing, and of the teachers that must be trained for them."""
    missing = [entry.cell for entry in entries if store.node(entry.cell, "cell").result is None]
    untrained = {
        cell.teacher.pretraining for cell in missing
        if cell.teacher.pretraining and store.node(cell, "teacher").result is None
    }  # fmt: skip
    return sum(cell.distill.steps for cell in missing) + sum(recipe.steps for recipe in untrained)
