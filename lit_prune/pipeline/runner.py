"""Compute the cells of a table: order and lock them, record outcomes, and wait for other processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lit_prune import cpu
from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.config.overrides import parents_of
from lit_prune.evaluate.memory import reset_peak
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.devices import run_on_all
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.model_files import check_same_tokens, prepare_models
from lit_prune.pipeline.schedule import waves
from lit_prune.pipeline.stage import Context, Stage, Tracker, Untracked
from lit_prune.pipeline.stages import calibrate, distill, finetune, pretrain, prune, tokenise, tokenizer
from lit_prune.pipeline.stages.teacher_outputs import TeacherOutputs
from lit_prune.pipeline.students import Students
from lit_prune.pipeline.validate import check_cells, check_files
from lit_prune.pipeline.validate_text import check_tokens, check_validation
from lit_prune.pipeline.work import attention_shape
from lit_prune.progress import Progress
from lit_prune.store import Locked, Store
from lit_prune.store.failures import failure_of, release_frames

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE for module in (tokenizer, tokenise, pretrain, finetune, prune, distill)
}
"""Name -> stage."""

Outcome = Literal["done", "failed", "busy"]
"""How an attempt at a cell ended; busy: another process holds it."""


class Runner:
    """Computes the missing results of a store, one stage at a time, each at most once."""

    def __init__(
        self, store: Store, execution: Execution, progress: Progress, tracker: Tracker | None = None, *,
        debug: bool = False, keep_students: bool = False,
    ) -> None:  # fmt: skip
        """Create a runner; `keep_students` keeps every pruned student, however much disk they take."""
        self.store, self.execution, self.debug = store, execution, debug
        self.teacher_outputs, self.students = TeacherOutputs(store, execution), Students(store, keep=keep_students)
        self.ctx = Context(store, execution, progress, tracker or Untracked(), STAGES, self.teacher_outputs, run_on_all)
        """The context that every stage gets."""
        self.num_cells = 1

    def check(self, cells: Iterable[Cell]) -> None:
        """Validate every cell, fetch the models, and tokenise and validate the texts, before any cell is computed.

        Raises:
            ConfigError: if a cell is invalid.
        """
        cells = list(cells)
        check_cells(cells, self.execution)
        if prepare_models(cells, self.ctx.progress):
            check_files(cells)
        check_same_tokens(cells, lambda cell: artifacts.tokenizer(cell, self.ctx))
        every = [one for cell in cells for one in (cell, *parents_of(cell))]
        read = {
            (one.corpus, one.teacher, one.calibration, one.evaluation, one.prune.loading, one.distill): one
            for one in every
        }
        for cell in read.values():
            check_tokens(cell, self._tokens_checked(cell))
            if cell.evaluation.second_corpus is not None:
                check_validation(
                    cell, self._tokens_checked(artifacts.with_second_text(cell)), "evaluation.second_corpus"
                )

    def _tokens_checked(self, cell: Cell) -> Path:
        """Return the tokens before any cell is computed, so that a failure here is a one-line error."""
        try:
            return artifacts.tokens(cell, self.ctx)
        except (Locked, ConfigError):
            raise
        except Exception as error:
            if self.debug:
                raise
            where = "; ".join(filter(None, (failure_of(error).frame, *getattr(error, "__notes__", ()))))
            raise ConfigError(f"corpus: the text cannot be tokenised ({failure_of(error).error}; {where})") from error

    def run(self, entries: Iterable[Entry]) -> int:
        """Compute the missing cells and return how many failed; a failure is recorded and the others continue.

        Raises:
            ConfigError: if the computation shows that the request is invalid, such as weights that are NaN.
        """
        entries = list(entries)
        cpu.prepare(attention_shape(entry.cell for entry in entries))
        outcomes: dict[str, Outcome] = {}
        for wave in self.expect(entries):
            for entry in wave:
                self._compute(entry, outcomes)
            # The next wave is cut from these.
            self._wait((entry for entry in wave if entry.parent), outcomes)
        # Only now, when this process holds no cell: two processes never wait for each other.
        self._wait(entries, outcomes)
        return sum(outcomes[entry.key] == "failed" for entry in entries)

    def expect(self, entries: Iterable[Entry]) -> list[list[Entry]]:
        """Register the cells of a run, so that each stage knows what the others need; return them in waves."""
        entries = list(entries)
        self.ctx.pending.update(calibrate.pending((entry.cell for entry in entries), self.store))
        planned = waves(self.store, entries)
        self.num_cells = len({entry.key for wave in planned for entry in wave})
        self.ctx.progress.cells(0, self.num_cells)
        self.students.expect((entry for wave in planned for entry in wave), self.ctx.progress)
        return [self.teacher_outputs.expect(wave, self.ctx) for wave in planned]

    def _compute(self, entry: Entry, outcomes: dict[str, Outcome]) -> None:
        """Compute a cell and note its outcome."""
        outcomes[entry.key] = self.attempt(entry)
        if outcomes[entry.key] != "busy":
            self.release(entry)
        self.ctx.progress.cells(sum(outcome != "busy" for outcome in outcomes.values()), self.num_cells)

    def release(self, entry: Entry) -> None:
        """Remove the intermediate results of a finished or failed cell that no other cell of the run needs."""
        self.teacher_outputs.release(entry.cell, self.ctx)
        self.students.release(entry.cell)

    def _wait(self, entries: Iterable[Entry], outcomes: dict[str, Outcome]) -> None:
        """Wait for the cells that other processes hold, and compute those that they leave unfinished."""
        for entry in entries:
            while outcomes[entry.key] == "busy":
                self.ctx.progress.say(f"{entry.row}, seed {entry.seed}: waiting for the process that computes it")
                with self.store.claim(entry.cell, "cell", wait=True) as node:
                    done = node.result is not None
                if done:
                    outcomes[entry.key] = "done"
                    self.release(entry)
                else:
                    self._compute(entry, outcomes)

    def attempt(self, entry: Entry) -> Outcome:
        """Compute a cell unless another process holds it; record why it failed.

        Raises:
            ConfigError: if the request itself is wrong.
        """
        ctx = dataclasses.replace(self.ctx, entry=entry, measurable=reset_peak())
        outcome: Outcome = "done"
        try:
            self.cell(entry, ctx)
        except Locked as busy:
            outcome = "busy"
            ctx.progress.say(str(busy))
        except ConfigError:
            raise  # the request itself is wrong: every row would fail
        except Exception as error:
            outcome = "failed"
            if self.debug:
                raise
            node, failure = entry.node(self.store), failure_of(error)
            ctx.progress.say(f"{ctx.doing} failed: {failure.error} ({failure.frame}; {node.folder / 'traceback.txt'})")
            with contextlib.suppress(OSError):  # a full disk has no room for the message either
                node.fail(failure.error, error)
            release_frames(error)
        ctx.reach(entry.key, entry.cell.distill.max_steps, ctx.doing)
        return outcome

    def cell(self, entry: Entry, ctx: Context | None = None) -> dict[str, Any]:
        """Return the result of a cell; compute it if it is missing.

        Raises:
            Locked: if another process computes it.
            Diverged: if the loss is no longer finite.
        """
        ctx = ctx or dataclasses.replace(self.ctx, entry=entry)
        with self.store.claim(entry.cell, "cell") as node:
            return ctx.compute("cell", entry.cell, node)
