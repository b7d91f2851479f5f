"""Materialise a cell: each stage is found by its address or computed from the stages upstream of it."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from lit_prune import cpu
from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.config.overrides import source_of, sources_of
from lit_prune.data.tokens import write_tokens
from lit_prune.distill.turns import in_turns
from lit_prune.evaluate.memory import reset_peak
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.models import loading
from lit_prune.pipeline.cohort import Cohort, cohorts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.model_files import check_ids, check_same_tokens, check_weights
from lit_prune.pipeline.schedule import waves
from lit_prune.pipeline.stages.distill import Retrainings
from lit_prune.pipeline.stages.evaluate import Evaluations
from lit_prune.pipeline.stages.finetune import correct
from lit_prune.pipeline.stages.pretrain import prepare, pretrain
from lit_prune.pipeline.stages.prune import Students
from lit_prune.pipeline.teachers import Teachings
from lit_prune.pipeline.validate import check, check_execution, check_tokens, check_validation, second_of
from lit_prune.progress import Progress
from lit_prune.pruning.shapes import teacher_config
from lit_prune.store import Locked, Node, Store
from lit_prune.store.address import key
from lit_prune.store.failures import failure_of, release_frames

_DOING = contextvars.ContextVar("doing", default="")
"""The cell in work, for messages; each of the runs in turns has its own."""

Outcome = Literal["done", "failed", "busy"]
"""How an attempt at a cell ended; busy: another process holds it."""


class Runner:
    """Computes what is missing in a store, one stage at a time, each at most once."""

    def __init__(
        self, store: Store, execution: Execution, bar: Progress, mirror: WandbTracker, *, debug: bool = False
    ) -> None:
        self.store, self.execution, self.bar, self.mirror, self.debug = store, execution, bar, mirror, debug
        self._steps: dict[str, int] = {}
        self.measurable = False
        """Whether the peak of the memory of the cells in work is known."""
        self.together = self.num_cells = 1
        """Cells in work, in turns."""
        self._failed: dict[tuple[str, str], Exception] = {}
        self.load = functools.lru_cache(maxsize=1)(loading.load_model)
        self.students, self.teachings = Students(self), Teachings(self)
        self.retrainings, self.evaluations = Retrainings(self), Evaluations(self)

    def check(self, cells: Iterable[Cell]) -> None:
        """See that every cell can be computed, before any of them is.

        Raises:
            ConfigError: one cannot.
        """
        cells, checked = list(cells), set()
        check_execution(self.execution, [c for asked in cells for c in (asked, *sources_of(asked))])
        for cell in cells:
            check(cell)
        check_weights(cells)
        check_ids(cells, self.tokenizer)
        check_same_tokens(cells, self.tokenizer)
        for cell in (c for asked in cells for c in (asked, *sources_of(asked))):
            question = (cell.corpus, cell.teacher, cell.importance, cell.evaluation)
            if question not in checked:
                check_tokens(cell, self._tokens_checked(cell))
                if cell.evaluation.second is not None:
                    check_validation(cell, self._tokens_checked(second_of(cell)), "evaluation.second")
                checked.add(question)

    def _tokens_checked(self, cell: Cell) -> Path:
        """The tokens, before any cell is computed: whatever fails here is one line."""
        try:
            return self.tokens(cell)
        except (Locked, ConfigError):
            raise
        except Exception as error:
            if self.debug:
                raise
            where = "; ".join(filter(None, (failure_of(error).frame, *getattr(error, "__notes__", ()))))
            raise ConfigError(f"corpus: the text cannot be tokenised ({failure_of(error).error}; {where})") from error

    def run(self, entries: Iterable[Entry]) -> int:
        """Compute the missing cells; one that fails is remembered and the others go on. Returns how many failed.

        Raises:
            ConfigError: what is asked cannot be done, which only the computation showed, like weights that are NaN.
        """
        entries = list(entries)
        cpu.prepare()
        self.students.expect(entry.cell for entry in entries)
        outcomes: dict[str, Outcome] = {}
        planned = waves(self.store, entries)
        self.num_cells = len({entry.key for wave in planned for entry in wave})
        self.bar.cells(0, self.num_cells)
        for wave in planned:
            for cohort in cohorts(wave, self.execution):
                self._compute(cohort, outcomes)
            # The next wave is cut from these.
            self._wait((entry for entry in wave if entry.source), outcomes)
        # Only now, when this process holds no cell: two processes never wait for each other.
        self._wait(entries, outcomes)
        self.teachings.end()
        return sum(outcomes[entry.key] == "failed" for entry in entries)

    def _compute(self, cohort: Cohort, outcomes: dict[str, Outcome]) -> None:
        """Compute the cells of a cohort in turns and note how each ended."""
        self.teachings.begin(cohort)
        self.together = len(cohort.entries)
        if self.together > 1:
            self._prepare(cohort.entries)
        self.measurable = reset_peak()
        found = in_turns(functools.partial(self._attempt, entry) for entry in cohort.entries)
        outcomes.update(zip((entry.key for entry in cohort.entries), found, strict=True))
        self.bar.cells(sum(outcome != "busy" for outcome in outcomes.values()), self.num_cells)

    def _wait(self, entries: Iterable[Entry], outcomes: dict[str, Outcome]) -> None:
        """Wait for the cells that other processes hold, and compute those that they leave unfinished."""
        for entry in entries:
            while outcomes[entry.key] == "busy":
                self.bar.say(f"{entry.row}, seed {entry.seed}: waiting for the process that computes it")
                with self.store.claim(entry.cell, "cell", wait=True) as node:
                    done = node.result is not None
                if done:
                    outcomes[entry.key] = "done"
                else:
                    self._compute(Cohort([entry]), outcomes)

    def _prepare(self, cohort: list[Entry]) -> None:
        """Compute what comes before the runs of a cohort: among them, one might wait for what another one holds."""
        for entry in cohort:
            _DOING.set(f"{entry.row}, seed {entry.seed}")
            try:
                self.tokens(entry.cell)
                self.teacher(entry.cell)
                if entry.cell.student.weights != "random":
                    self.students.student(entry.cell)
            except Exception as error:  # raised and reported again where the cell is attempted
                release_frames(error)

    def _attempt(self, entry: Entry) -> Outcome:
        """Compute a cell, or note why it failed."""
        doing = f"{entry.row}, seed {entry.seed}"
        _DOING.set(doing)
        outcome: Outcome = "done"
        try:
            self.cell(entry)
        except Locked as busy:
            outcome = "busy"
            self.bar.say(str(busy))
        except ConfigError:
            raise  # the request itself is wrong, which the next row would say again
        except Exception as error:
            outcome = "failed"
            if self.debug:
                raise
            node, failure = self.store.node(entry.cell, "cell"), failure_of(error)
            self.bar.say(f"{doing} failed: {failure.error} ({failure.frame}; {node.folder / 'traceback.txt'})")
            with contextlib.suppress(OSError):  # a full disk has no room for the reason either
                node.fail(failure.error, error)
            release_frames(error)
        self._reach(entry.key, entry.cell.distill.steps, doing)
        return outcome

    def _reach(self, address: str, step: int, what: str) -> None:
        """Tell the bar how far one of the runs has come."""
        self._steps[address] = step
        self.bar.at(sum(self._steps.values()), what)

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
            if not isinstance(error, ConfigError):
                with contextlib.suppress(OSError):  # a full disk has no room for the reason either
                    failed = self.store.node(cell, stage)
                    failed.fail(failure_of(error).error, error)
                    error.add_note(str(failed.folder / "traceback.txt"))
            raise

    def teacher(self, cell: Cell) -> str:
        """The folder of the teacher, corrected on the cell's text where the cell asks for it."""
        recipe, location = cell.teacher.correction, self.uncorrected(cell)
        if recipe is None:
            return location
        tokens = self.tokens(cell)
        with self.claim(cell, "correction") as node:
            if node.result is None:
                tell = self._teller("correcting the teacher", node.key, recipe.steps)
                model = loading.load_model(location).to(self.device)
                self.tokenizer(cell).save_pretrained(node.folder / "model")
                node.finish(correct(recipe, model, tokens, node.folder, self.execution, tell))
        return str(node.folder / "model")

    def uncorrected(self, cell: Cell) -> str:
        """The folder of the teacher as it was; one given by its recipe is trained."""
        if cell.teacher.model is not None:
            return loading.locate(cell.teacher.model, cell.teacher.fingerprint)
        assert cell.teacher.pretraining is not None
        recipe = cell.teacher.pretraining
        with self.claim(cell, "teacher") as node:
            if node.result is None:
                tell = self._teller("pretraining the teacher", node.key, recipe.steps)
                node.finish(pretrain(recipe, node.folder, self.execution, tell))
        return str(node.folder / "model")

    def pruned(self, cell: Cell) -> str:
        """The folder of the model that is pruned: the teacher, or the student of a source.

        Raises:
            RuntimeError: the source has failed.
        """
        source = source_of(cell)
        if source is None:
            return self.teacher(cell)
        if not source.distill.steps:
            return self.students.student(source)
        node = self.store.node(source, "cell")
        if node.verified is None:
            with self.store.claim(source, "cell", wait=True):  # until another process that is at it lets go
                pass
        if node.result is None:
            raise RuntimeError(f"its source {node.key} is not done ({node.error or 'stopped'})")
        return str(node.folder / "model")

    def tokenizer(self, cell: Cell) -> Any:
        """The teacher's tokenizer, which of one that is not trained yet is made first."""
        if cell.teacher.pretraining is None:
            return loading.load_tokenizer(self.uncorrected(cell))
        with self.claim(cell, "teacher") as node:
            return prepare(cell.teacher.pretraining, node.folder)

    def tokens(self, cell: Cell) -> Path:
        """The folder of the corpus in the teacher's tokens."""
        node = self.store.node(cell, "tokens")
        if node.verified is None:
            self.tell("tokenising")
            tokenizer = self.tokenizer(cell)
            with self.claim(cell, "tokens") as node:
                if node.result is None:  # as it no longer is where another process was waited for
                    tell = self.counter("tokenising", None, "train tokens")
                    rows = teacher_config(cell).vocab_size
                    node.finish(write_tokens(cell.corpus, tokenizer, node.folder, tell, vocab_size=rows))
        return node.folder

    def cell(self, entry: Entry) -> dict[str, Any]:
        """The measurement itself.

        Raises:
            Busy: another process works on it.
            Diverged: the loss is no longer a number.
        """
        cell = entry.cell
        scratch = cell.student.weights == "random"
        student, tokens = None if scratch else self.students.student(cell), self.tokens(cell)
        with self.store.claim(cell, "cell") as node:
            if node.result is not None:
                return node.result
            return self.retrainings.measure(entry, student, tokens, node)

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return torch.device("cuda" if self.execution.accelerator != "cpu" and torch.cuda.is_available() else "cpu")

    def tell(self, what: str) -> None:
        """Say what is being done."""
        doing = _DOING.get()
        self.bar.say(f"{doing}: {what}" if doing else what)

    def counter(self, what: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Return a receiver of progress of a stage that takes no optimizer steps, such as 64 of 128 sequences."""
        return lambda done: self.bar.count(f"{_DOING.get()} {what}".strip(), done, total, unit)

    def teller_of_cell(self, entry: Entry) -> Callable[[int, dict[str, float]], None]:
        """Progress of the retraining of a cell, and of how many others in turns with it."""
        others = f" and {self.together - 1} more" if self.together > 1 else ""
        return self._teller(f"{_DOING.get()}{others}", entry.key, entry.cell.distill.steps)

    def _teller(self, what: str, address: str, steps: int) -> Callable[[int, dict[str, float]], None]:
        def tell(step: int, row: dict[str, float]) -> None:
            loss = f", loss {row['loss']:.3f}" if row else ""
            self.bar.count(f"{what}{loss}", step, steps, "step")
            self._reach(address, step, f"{what}{loss}")

        return tell
