"""A step of the pipeline and its context: store, folder, runtime, progress and results of other stages."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lit_prune.config import Cell, ConfigError, Execution
from lit_prune.distill.teacher import Teacher
from lit_prune.models import loading
from lit_prune.pipeline.clock import Clock, Lap
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.metering import Meter
from lit_prune.pipeline.work import recorded
from lit_prune.progress import Progress
from lit_prune.store import Locked, Node, Store
from lit_prune.store.address import STAGES, key
from lit_prune.store.failures import failure_of

if TYPE_CHECKING:  # a plan of the work needs no Lightning
    from lightning.pytorch.loggers import Logger

    from lit_prune.distill.train import OnProgress


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: it reads some sections of a cell and fills the folder of their address."""

    name: str
    """Name of its folder in the store."""
    run: Callable[[Cell, Context], dict[str, Any]]
    """Compute the result of a cell; files go to the folder of the context."""
    resumes: bool = False
    """Whether an interrupted attempt is resumed, so that its time counts."""
    inputs: Callable[[Cell, Context], Any] | None = None
    """Compute the results of other stages that `run` reads. With it, `run` may be called on several ranks at once, of
    which the first alone writes files."""

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections of a cell that the stage and those upstream of it read."""
        return STAGES[self.name]


class Tracker(Protocol):
    """Receives the metrics and the result of each cell."""

    def logger(self, entry: Entry, folder: Path) -> AbstractContextManager[Sequence[Logger]]:
        """Open the loggers of a cell's training run in `folder`."""

    def conclude(self, entry: Entry, result: dict[str, Any]) -> None:
        """Close the run of a cell with its result."""


class Untracked:
    """A tracker that drops everything."""

    def logger(self, entry: Entry, folder: Path) -> AbstractContextManager[Sequence[Logger]]:
        """Return no logger."""
        return contextlib.nullcontext(())

    def conclude(self, entry: Entry, result: dict[str, Any]) -> None:
        """Do nothing."""


def run_here(stage: Stage, cell: Cell, ctx: Context) -> dict[str, Any]:
    """Run a stage in this process alone."""
    return stage.run(cell, ctx)


class Teachers(Protocol):
    """Provides teacher outputs."""

    def of(self, cell: Cell, ctx: Context) -> Teacher | None:
        """Return the teacher of a cell's retraining; None if its objective needs none."""


@dataclass(frozen=True)
class Context:
    """Everything a stage may use. Copies share all but the current row, the node and its env.json entries."""

    store: Store
    execution: Execution
    progress: Progress
    tracker: Tracker
    stages: Mapping[str, Stage]
    """Name -> stage, so that one stage gets the results of others."""
    teachers: Teachers
    run_stage: Callable[[Stage, Cell, Context], dict[str, Any]] = run_here
    """Run a stage with a context, on the devices of `execution`."""
    load: Callable[[str], Any] = field(default_factory=lambda: functools.lru_cache(maxsize=1)(loading.load_model))
    """Return the model in a folder. The last one is cached and shared, so it must not be changed."""
    pending: dict[str, frozenset[str]] = field(default_factory=dict)
    """Address of a calibration set -> statistics that students of missing cells need."""
    entry: Entry | None = None
    """The current row and seed."""
    node: Node | None = None
    """The node that the stage fills."""
    env: dict[str, Any] = field(default_factory=dict)
    """Entries that the stage adds to env.json."""
    measurable: bool = False
    """Whether the peak memory of the current cell is known."""
    clock: Clock = field(default_factory=Clock)
    """Wall time of the stages, each without the stages it calls."""
    meter: Meter = field(default_factory=Meter)
    """Work of pruning."""
    lap: Lap | None = None
    """Wall time of the stage that fills the node."""
    _steps: dict[str, int] = field(default_factory=dict)
    _failed: dict[tuple[str, str], Exception] = field(default_factory=dict)

    # Results

    @property
    def folder(self) -> Path:
        """The folder that the stage fills."""
        assert self.node is not None
        return self.node.folder

    def get(self, stage: str, cell: Cell) -> Node:
        """Return the finished node of a stage; compute it if missing, or wait for another process that does."""
        node = self.store.node(cell, stage)
        if node.verified is None:
            with self.clock.lap(), self.claim(cell, stage) as node:
                self.compute(stage, cell, node)
        return node

    def compute(self, stage: str, cell: Cell, node: Node) -> dict[str, Any]:
        """Return the result of a node that this process holds; run its stage if it is not done.

        The seconds and the work of the stage go to env.json.
        """
        if node.result is not None:
            return node.result
        with self.clock.lap() as lap:
            ctx = dataclasses.replace(self, node=node, env={}, lap=lap)
            try:
                result = self.run_stage(self.stages[stage], cell, ctx)
            except BaseException:
                if self.stages[stage].resumes:
                    with contextlib.suppress(OSError):  # the disk may be full
                        ctx.spend()
                raise
            return node.finish(result, seconds=lap.seconds, **recorded(stage, cell), **ctx.env)

    def spend(self) -> None:
        """Record the seconds of the stage so far, so that they survive a kill."""
        assert self.node is not None
        assert self.lap is not None
        self.node.spend(self.lap.seconds)

    @contextlib.contextmanager
    def claim(self, cell: Cell, stage: str) -> Iterator[Node]:
        """Hold a node that several cells share, once other processes release it; re-raise its error if it failed."""
        address = stage, key(cell, stage)
        if address in self._failed:
            raise self._failed[address]
        try:
            with self.store.claim(cell, stage, wait=True) as node:
                yield node
        except Locked:  # taken over by another process, which has not failed
            raise
        except Exception as error:
            self._failed[address] = error
            if not isinstance(error, ConfigError):
                with contextlib.suppress(OSError):  # a full disk has no room for the message either
                    failed = self.store.node(cell, stage)
                    failed.fail(failure_of(error).error, error)
                    error.add_note(str(failed.folder / "traceback.txt"))
            raise

    # Runtime

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return torch.device("cuda" if self.execution.accelerator != "cpu" and torch.cuda.is_available() else "cpu")

    # Progress

    @property
    def doing(self) -> str:
        """The current row and seed, for messages."""
        return f"{self.entry.row}, seed {self.entry.seed}" if self.entry else ""

    def say(self, what: str) -> None:
        """Log a line of progress."""
        self.progress.say(f"{self.doing}: {what}" if self.doing else what)

    def counter(self, what: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Return a progress callback for work without optimizer steps, such as 64 of 128 sequences."""
        return lambda done: self.progress.count(f"{self.doing} {what}".strip(), done, total, unit)

    def training(self, what: str, steps: int) -> OnProgress:
        """Return a callback for the steps and metrics of a training run into the node."""
        assert self.node is not None
        address = self.node.key

        def on_progress(step: int, row: dict[str, float]) -> None:
            loss = f", loss {row['loss']:.3f}" if row else ""
            self.progress.count(f"{what}{loss}", step, steps, "step")
            self.reach(address, step, f"{what}{loss}")

        return on_progress

    def reach(self, address: str, step: int, what: str) -> None:
        """Report the step of the run at an address."""
        self._steps[address] = step
        self.progress.at(sum(self._steps.values()), what)
