"""Materialise a cell: each stage is found by its address or computed from the stages upstream of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lit_prune.address import key
from lit_prune.config import Cell, ConfigError
from lit_prune.data.tokens import write_tokens
from lit_prune.distill.callbacks import Checks, check_steps
from lit_prune.distill.train import train
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.evaluate.validation import sizes_of, validation_data, validation_losses
from lit_prune.execution import Execution
from lit_prune.grid import Entry
from lit_prune.models import teacher as teachers
from lit_prune.preflight import check, check_tokens, check_validation, second_of
from lit_prune.pretrain import prepare, pretrain
from lit_prune.progress import Bar
from lit_prune.settings import source_of, sources_of
from lit_prune.store import CHECKS, Busy, Node, Store
from lit_prune.students import Students
from lit_prune.tracking import Mirror

Claim = Callable[[Cell, str], contextlib.AbstractContextManager[Node]]


class Runner:
    """Computes what is missing in a store, one stage at a time, each at most once."""

    def __init__(self, store: Store, execution: Execution, bar: Bar, mirror: Mirror) -> None:
        self.store, self.execution, self.bar, self.mirror = store, execution, bar, mirror
        self._doing = ""
        self._failed: dict[tuple[str, str], Exception] = {}
        self._counted: set[str] = set()
        self.load = functools.lru_cache(maxsize=1)(teachers.load_model)
        self.students = Students(self)

    def check(self, cells: Iterable[Cell]) -> None:
        """See that every cell can be computed, before any of them is.

        Raises:
            ConfigError: one cannot.
        """
        cells, checked = list(cells), set()
        for cell in cells:
            check(cell)
        for cell in (c for asked in cells for c in (asked, *sources_of(asked))):
            question = (cell.corpus, cell.teacher, cell.importance, cell.evaluation)
            if question not in checked:
                check_tokens(cell, self.tokens(cell))
                if cell.evaluation.second is not None:
                    check_validation(cell, self.tokens(second_of(cell)), "evaluation.second")
                checked.add(question)

    def run(self, entries: Iterable[Entry]) -> int:
        """Compute the missing cells; one that fails is remembered and the others go on. Returns how many failed.

        Raises:
            ConfigError: what is asked cannot be done, which only the computation showed, like weights that are NaN.
        """
        entries, failed = list(entries), 0
        self.students.expect(entry.cell for entry in entries)
        for entry in entries:
            self._doing = f"{entry.row}, seed {entry.seed}"
            steps_after = self.bar.done + self._steps_to(entry.cell)
            try:
                self.cell(entry)
            except Busy as busy:
                self.bar.say(str(busy))
            except ConfigError:
                raise  # the request itself is wrong, which the next row would say again
            except Exception as error:
                failed += 1
                message = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
                self.bar.say(f"{self._doing} failed: {message}")
                with contextlib.suppress(OSError):  # a full disk has no room for the reason either
                    self.store.node(entry.cell, "cell").fail(message)
            self.bar.at(max(self.bar.done, steps_after), self._doing)
        return failed

    @contextlib.contextmanager
    def claim(self, cell: Cell, stage: str) -> Iterator[Node]:
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
        with self.claim(cell, "teacher") as node:
            if node.result is None:
                tell = self._teller("pretraining the teacher", start, recipe.steps)
                node.finish(pretrain(recipe, node.folder, self.execution, tell))
        return str(node.folder / "model")

    def tokenizer(self, cell: Cell) -> Any:
        """The teacher's tokenizer, which of one that is not trained yet is made first."""
        if cell.teacher.pretraining is None:
            return teachers.load_tokenizer(self.teacher(cell))
        with self.claim(cell, "teacher") as node:
            return prepare(cell.teacher.pretraining, node.folder)

    def tokens(self, cell: Cell) -> Path:
        """The folder of the corpus in the teacher's tokens."""
        node = self.store.node(cell, "tokens")
        if node.result is None:
            self.tell("tokenising")
            tokenizer = self.tokenizer(cell)
            with self.claim(cell, "tokens") as node:
                if node.result is None:  # as it no longer is where another process was waited for
                    tell = self.counter("tokenising", "train tokens")
                    node.finish(write_tokens(cell.corpus, tokenizer, node.folder, tell))
        return node.folder

    def pruned(self, cell: Cell) -> str:
        """The folder of the model that is pruned: the teacher, or the student of a source that is done."""
        source = source_of(cell)
        if source is None:
            return self.teacher(cell)
        if not source.distill.steps:
            return self.students.student(source)
        return str(self.store.node(source, "cell").folder / "model")

    def cell(self, entry: Entry) -> dict[str, Any]:
        """The measurement itself, after those of the sources it comes from.

        Raises:
            Busy: another process works on it.
            Diverged: the loss is no longer a number.
        """
        awaited, doing = list(awaited_sources(self.store, entry.cell)), self._doing
        for place, source in enumerate(awaited, 1):
            row = f"{entry.row}, source {place} of {len(awaited)}"
            self._doing = f"{row}, seed {entry.seed}"
            self._measure(dataclasses.replace(entry, row=row, cell=source), self.claim)
        self._doing = doing
        return self._measure(entry, self.store.claim)

    def _measure(self, entry: Entry, claim: Claim) -> dict[str, Any]:
        cell = entry.cell
        scratch = cell.student.weights == "random"
        student, tokens = None if scratch else self.students.student(cell), self.tokens(cell)
        with claim(cell, "cell") as node:
            if node.result is not None:
                return node.result
            started = time.perf_counter()
            model = teachers.load_model(student) if student else self.students.new(cell)
            if cell.distill.steps:
                self._distill(entry, model, tokens, node)
            result = self._evaluate(cell, model, tokens) | self._checked(cell, model, tokens, node)
            self.mirror.conclude(entry, result)
            return node.finish(result, seconds=round(time.perf_counter() - started, 1))

    def _steps_to(self, cell: Cell) -> int:
        """Optimizer steps to a cell and to what it waits for, but for those said before: sources may be shared."""
        steps = {key(c): c.distill.steps for c in (*awaited_sources(self.store, cell), cell)}
        new = steps.keys() - self._counted
        self._counted |= new
        return sum(steps[address] for address in new)

    def _distill(self, entry: Entry, model: Any, tokens: Path, node: Node) -> None:
        cell = entry.cell
        needs_teacher = cell.distill.w_logits or cell.distill.alpha
        teacher = self.load(self.teacher(cell)) if needs_teacher else None
        checks = []
        if cell.evaluation.checks:
            steps = check_steps(cell.distill.steps, cell.evaluation.checks)
            checks = [Checks(node.folder / CHECKS, steps, self._validate(cell, tokens))]
        with self.mirror.logger(entry) as loggers:
            train(
                model, teacher, cell.distill, tokens, node.folder, seed=cell.seed, execution=self.execution,
                tell=self._teller(self._doing, self.bar.done, cell.distill.steps), loggers=loggers, callbacks=checks,
            )  # fmt: skip
        model.save_pretrained(node.folder / "model")

    def _validate(self, cell: Cell, tokens: Path) -> Callable[[Any, bool], dict[str, float]]:
        """A function that measures a student on the text, and at the ends of its run against the teacher."""
        teacher, data = self.load(self.teacher(cell)), validation_data(cell.evaluation, tokens)

        def validate(student: Any, at_end: bool) -> dict[str, float]:
            return validation_losses(student, teacher if at_end else None, cell.distill, data.predict_dataloader())

        return validate

    def _checked(self, cell: Cell, model: Any, tokens: Path, node: Node) -> dict[str, float]:
        """The losses before and after the retraining, where the cell asks for checks."""
        if not cell.evaluation.checks:
            return {}
        if cell.distill.steps:
            rows = pd.read_csv(node.folder / CHECKS).to_dict("records")
        else:
            rows = [self._validate(cell, tokens)(model.to(_device(self.execution)), True)]
        before, after = rows[0], rows[-1]
        return {
            "lm_loss_before": before["lm_loss"],
            "kd_loss_before": before["kd_loss"],
            "kd_loss": after["kd_loss"],
        }

    def _evaluate(self, cell: Cell, model: Any, tokens: Path) -> dict[str, Any]:
        loss, num_tokens = self._lm_loss(cell, model, tokens)
        result = {
            "lm_loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "num_tokens": num_tokens,
            **sizes_of(model),
        }
        if cell.evaluation.second is not None:
            other = second_of(cell)
            result["second_lm_loss"], _ = self._lm_loss(other, model, self.tokens(other))
        return result

    def _lm_loss(self, cell: Cell, model: Any, tokens: Path) -> tuple[float, int]:
        batches = validation_data(cell.evaluation, tokens).predict_dataloader()
        loss, num_tokens = language_model_loss(model.to(_device(self.execution)), batches)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}")
        return loss, num_tokens

    def tell(self, what: str) -> None:
        """Say what is being done."""
        self.bar.say(f"{self._doing}: {what}" if self._doing else what)

    def counter(self, what: str, unit: str) -> Callable[[int], None]:
        """Progress of work that is no optimizer step: said, but not counted on the bar."""
        return lambda count: self.bar.at(self.bar.done, f"{self._doing} {what}, {count:,} {unit}".strip())

    def _teller(self, what: str, start: int, steps: int) -> Callable[[int, dict[str, float]], None]:
        def tell(step: int, row: dict[str, float]) -> None:
            loss = f", loss {row['loss']:.3f}" if row else ""
            self.bar.at(start + step, f"{what}{loss}")

        return tell


def _device(execution: Execution) -> torch.device:
    if execution.accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def planned_steps(store: Store, entries: Iterable[Entry]) -> int:
    """Optimizer steps of all cells that are missing, and of the sources and teachers they wait for."""
    cells = [entry.cell for entry in entries if store.node(entry.cell, "cell").result is None]
    missing = list({key(c): c for cell in cells for c in (*awaited_sources(store, cell), cell)}.values())
    untrained = {
        cell.teacher.pretraining for cell in missing
        if cell.teacher.pretraining and store.node(cell, "teacher").result is None
    }  # fmt: skip
    return sum(cell.distill.steps for cell in missing) + sum(recipe.steps for recipe in untrained)


def awaited_sources(store: Store, cell: Cell) -> Iterator[Cell]:
    """The retrained sources that are missing and that the student of a cell is yet to be cut from, first ones first."""
    source = source_of(cell)
    if source is None or store.node(cell, "student").result is not None:
        return
    if not source.distill.steps:
        yield from awaited_sources(store, source)
    elif store.node(source, "cell").result is None:
        yield from awaited_sources(store, source)
        yield source
