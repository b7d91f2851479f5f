"""`lit-prune table`: run | status | report | diff. Torch is imported only when something is computed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from lit_prune import cpu
from lit_prune.cli.process import Output, Verb
from lit_prune.config import ConfigError, Execution, Placement, renames
from lit_prune.config.gpus import GpuName
from lit_prune.config.overrides import check_flags, check_placement
from lit_prune.config.profiles import is_file
from lit_prune.config.table import Table
from lit_prune.cpu.threads import share_the_machine
from lit_prune.escape import terminal_text
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.store import DEFAULT_ROOT, Store

Action = Literal["run", "status", "report", "diff"]


@dataclasses.dataclass(frozen=True)
class TableFlags(TableRequest):
    """Flags of every table."""

    dry_run: bool = False
    """Validate the request and list what would be computed (size of the student, tokens, expected time), then stop."""
    plan: GpuName | None = None
    """List parameters, memory by part, FLOPs and hours of the missing cells on this GPU (or on as many as --devices
    says), then stop; exit code 2 if a training does not fit."""
    gpu_price: float | None = None
    """With --plan: dollars of a GPU-hour, to list the cost too."""
    utilization: float = 0.4
    """With --plan: share of the GPU's peak speed that training reaches, an assumption."""
    record: bool = False
    """With run or report: also write the record experiments/TABLE/PROFILE/, which can be committed."""
    store: str = DEFAULT_ROOT
    """Folder of all results; results in it are reused."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Log runs to Weights & Biases; auto is online if there is an API key, else offline."""
    debug: bool = False
    """Stop at the first failure with its traceback. By default a failure is recorded and the other cells continue."""
    placement: tyro.conf.OmitArgPrefixes[Placement] = Placement()
    execution: tyro.conf.OmitArgPrefixes[Execution] = Execution()


@tyro.conf.configure(tyro.conf.UseAppendAction)
@dataclasses.dataclass(frozen=True)
class CliArgs(TableFlags):
    """Flags of the command of one table."""

    command: tyro.conf.Positional[Action] = "run"
    """run computes the missing cells and reports; status lists the cells; report prints and writes the report; diff
    compares the configs of two addresses."""
    keys: tyro.conf.Positional[tuple[str, ...]] = ()
    """diff only: two addresses, or their first digits."""


@tyro.conf.configure(tyro.conf.UseAppendAction)
@dataclasses.dataclass(frozen=True)
class NamedTable(TableFlags):
    """Reproduce a table of a paper: every row and seed, with error bars and a verdict on each claim."""

    table: tyro.conf.Positional[str | None] = None
    """Table, e.g. loss_ablation; default: list all tables."""
    command: tyro.conf.Positional[Action] = "run"
    """run computes the missing cells and reports; status lists the cells; report prints and writes the report; diff
    compares the configs of two addresses."""
    keys: tyro.conf.Positional[tuple[str, ...]] = ()
    """diff only: two addresses, or their first digits."""


def main(table: Table, argv: Sequence[str] | None = None) -> int:
    """Run the command line of one table; return the exit code."""
    verb = Verb(table.name, CliArgs, lambda flags: run(table, flags), renamed=renames.FLAGS)
    about = f"{table.question} {table.source}."
    return verb.main(argv, prog=f"python -m lit_prune.experiments.{table.name}", about=about)


def run(table: Table, flags: CliArgs | NamedTable) -> int:
    """Carry out the command on a table."""
    share_the_machine()
    cpu.choose(flags.execution)
    return Command(table, flags, Output()).run()


def run_named(flags: NamedTable) -> int:
    """Carry out the command on the named table, or list all tables."""
    from lit_prune.registry import table_of, tables

    if flags.table is not None:
        return run(table_of(flags.table), flags)
    from rich.table import Table as Grid

    grid = Grid("table", "question", "source", box=None, pad_edge=False, header_style="bold")
    for name in tables():
        table = table_of(name)
        grid.add_row(name, terminal_text(table.question), terminal_text(table.source))
    Output().print(grid)
    return 0


VERB = Verb("table", NamedTable, run_named, renamed=renames.FLAGS)


class Command:
    """One invocation of a table."""

    def __init__(self, table: Table, flags: CliArgs | NamedTable, console: Console) -> None:
        self.table, self.flags, self.console = table, flags, console
        self.store = Store(flags.store)

    def run(self) -> int:
        """Carry out the command."""
        if self.flags.command == "diff":
            return self._diff()
        if self.flags.keys:
            raise ConfigError(f"{self.flags.command}: must be given no address, got {' '.join(self.flags.keys)}")
        check_placement(self.flags.placement)
        if self.flags.debug and self.flags.placement.workers:
            raise ConfigError("--debug: must be given without --jobs and --on, it needs one process")
        if self.flags.record:
            self._refuse_record()
        self._check_plan()
        measure = self.flags.command == "run" and not self.flags.dry_run and self.flags.plan is None
        self.table, self.entries = requested_entries(self.table, self.flags, self.store, measure=measure)
        if self.flags.plan is not None:
            return self._plan(self.flags.plan)
        if self.flags.dry_run:
            return self._dry_run()
        failed = self._compute() if self.flags.command == "run" else 0
        if self.flags.command == "status":
            return self._status()
        if failed and len(self._missing(self.entries)) == len(self.entries):
            print(f"error: none of the {len(self.entries)} cells is done, so there is no report", file=sys.stderr)
            return 1
        return self._report() or min(failed, 1)

    def _missing(self, found: list[Entry]) -> list[Entry]:
        return [entry for entry in found if entry.node(self.store).result is None]

    def _compute(self) -> int:
        """Compute what is missing; returns how many cells failed."""
        missing = self._missing(self.entries)
        if not missing:
            return 0
        self.store.check_writable()
        from lit_prune.api.compute import compute
        from lit_prune.cli.progress import ProgressBar
        from lit_prune.pipeline.outcomes import check_rows

        flags = self.flags
        check_rows(self.table, Path(flags.profile).stem, self.entries)
        return compute(
            missing, self.store, flags.execution, ProgressBar, flags.wandb, self.table.name, self._begin,
            debug=flags.debug, placement=flags.placement,
        )  # fmt: skip

    def _begin(self) -> None:
        """Leave in the store what was asked, for the reading of a run that is cut off."""
        from lit_prune.render.files import write_request

        write_request(self._assemble(), self.flags.folder(self.table, self.store))

    def _assemble(self) -> Any:
        from lit_prune.report import assemble

        request = self.flags
        return assemble(
            self.table, request.profile, request.settings, self.entries, self.store, flags=request.selection
        )

    def _dry_run(self) -> int:
        """Validate the request and list what it would compute; compute and write nothing."""
        from lit_prune.render.terminal import print_costs

        check_flags(self.flags.execution)
        missing = self._missing(self.entries)
        print_costs(self._costs_of(missing) if missing else [], self.console)
        self.console.print(f"{len(missing)} cells to compute, {len(self.entries) - len(missing)} found")
        self._print_pending()
        return 0

    def _costs_of(self, missing: list[Entry]) -> list[Any]:
        """Validate missing cells by the models that transformers would build, which imports torch; estimate costs."""
        from lit_prune.models.silence import quiet
        from lit_prune.pipeline.costs import costs, runs_of
        from lit_prune.pipeline.outcomes import check_rows
        from lit_prune.pipeline.validate import check_cells
        from lit_prune.report.recorded_runs import recorded_runs

        quiet()
        check_rows(self.table, Path(self.flags.profile).stem, self.entries)
        check_cells([entry.cell for entry in missing], self.flags.execution)
        return costs(missing, self.store, runs_of(self.store) or recorded_runs(self.table.name), self.flags.execution)

    def _check_plan(self) -> None:
        """Refuse flags of a plan that have no effect or are out of range."""
        flags = self.flags
        if flags.plan is None and (flags.gpu_price, flags.utilization) != (None, TableFlags.utilization):
            raise ConfigError("--plan: must name a GPU with --gpu-price or --utilization")
        if not 0 < flags.utilization <= 1:
            raise ConfigError(f"--utilization: must be above 0 and at most 1, got {flags.utilization}")
        if flags.gpu_price is not None and flags.gpu_price < 0:
            raise ConfigError(f"--gpu-price: must be >= 0, got {flags.gpu_price}")

    def _plan(self, gpu: GpuName) -> int:
        """List what the missing cells take on a GPU; compute and write nothing.

        Raises:
            ConfigError: if a training does not fit.
        """
        from lit_prune.models.silence import quiet
        from lit_prune.pipeline.plan import plan
        from lit_prune.render.plan import print_plan

        quiet()
        missing = self._missing(self.entries)
        found = plan(missing, self.store, self.flags.execution, gpu, self.flags.utilization)
        print_plan(found, self.flags.gpu_price, self.console)
        problem = next((line.problem for line in found.lines if line.problem), None)
        if problem:
            raise ConfigError(f"--plan: {problem}")
        return 0

    def _print_pending(self) -> None:
        if self.table.pending:
            self.console.print(terminal_text(f"Not final: {self.table.pending}"))

    def _status(self) -> int:
        from lit_prune.render.terminal import print_status
        from lit_prune.report.results_frame import tidy
        from lit_prune.store.activity import work_in_progress

        print_status(tidy(self.table, self.entries, self.store), self.console, work_in_progress(self.store))
        self._print_pending()
        return 0

    def _report(self) -> int:
        """Print the report and write its files."""
        from lit_prune.render.files import write_files
        from lit_prune.render.terminal import print_report, print_students
        from lit_prune.report.students import students

        report = self._assemble()
        print_report(report, self.console)
        print_students(list(students(report, self.store)), self.console)
        for path in write_files(report, self.flags.folder(self.table, self.store)):
            self.console.print(terminal_text(f"written: {path}"), soft_wrap=True)
        if self.flags.record:
            self._record(report)
        return 0

    def _refuse_record(self) -> None:
        """Refuse a record that could not be written, before anything is computed."""
        if self.flags.changes:
            changes = " ".join(self.flags.changes)
            raise ConfigError(f"--record: must be given without --set, --add-row, --filter and --seeds, got {changes}")
        if is_file(self.flags.profile):
            raise ConfigError(f"--record: {self.flags.profile} is a file; a record is of a profile in configs/")
        if not Path("experiments").is_dir():
            raise ConfigError("--record: there is no folder experiments/ here; records belong into a checkout")

    def _record(self, report: Any) -> None:
        from lit_prune.render.files import write_record

        if missing := self._missing(self.entries):
            raise ConfigError(f"--record: {len(missing)} cells are not done; a record is of a whole table")
        for path in write_record(report, Path("experiments") / self.table.name / self.flags.profile):
            self.console.print(terminal_text(f"recorded: {path}"), soft_wrap=True)

    def _diff(self) -> int:
        from lit_prune.render.terminal import print_diff

        if len(self.flags.keys) != 2:
            raise ConfigError("diff takes two addresses: diff KEY KEY")
        first, second = (self.store.find(prefix) for prefix in self.flags.keys)
        print_diff(first, second, self.console)
        return 0
