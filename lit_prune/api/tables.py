"""Run a table and read its report. Imports torch only to compute a cell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError, Execution
from lit_prune.config.fields import plain_scalar
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.progress import ProgressOf, Silent
from lit_prune.store import DEFAULT_ROOT, Store

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report


@dataclasses.dataclass(frozen=True)
class TableReport:
    """The report of a table."""

    report: Report
    """The full report: summary, cells, histories, versions."""

    @property
    def frame(self) -> pd.DataFrame:
        """A line per cell: row, seed, state and metrics."""
        return self.report.tidy

    @property
    def claims(self) -> pd.DataFrame:
        """A line per claim: verdict, difference, interval, p, n."""
        return self.report.verdicts

    @property
    def summary(self) -> pd.DataFrame:
        """A line per row: mean, standard deviation, interval, difference to the baseline, and the paper's values."""
        return self.report.summary


def run_table(
    name: str,
    *,
    profile: str = "quick",
    settings: Mapping[str, Any] | None = None,
    filters: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    store: str | Path = DEFAULT_ROOT,
    execution: Execution | None = None,
    progress: ProgressOf = Silent,
) -> TableReport:
    """Compute the missing cells of a table and return its report.

    Args:
        name: the table, such as "loss_ablation".
        profile: the scale: quick, laptop, h200, paper, or a YAML file.
        settings: fields of every row by dotted path.
        filters: field -> value; keeps only the rows with these values.
        seeds: number of seeds of every row; default: the profile's.

    Raises:
        ConfigError: if the request is invalid, before anything is computed.
        RuntimeError: if no cell could be computed.
    """
    from lit_prune.pipeline.outcomes import check_rows
    from lit_prune.registry import table_of
    from lit_prune.report import assemble

    def words(changes: Mapping[str, Any] | None) -> tuple[str, ...]:
        return tuple(f"{path}={json.dumps(value, default=plain_scalar)}" for path, value in (changes or {}).items())

    request = TableRequest(profile, words(settings), (), words(filters), seeds)
    opened = Store(store)
    table, entries = requested_entries(table_of(name), request, opened, measure=True)
    missing = [entry for entry in entries if entry.node(opened).result is None]
    if missing:
        from lit_prune.api.compute import compute
        from lit_prune.render.files import write_request

        def begin() -> None:
            known = assemble(table, profile, request.settings, entries, opened, flags=request.selection)
            write_request(known, request.folder(table, opened))

        check_rows(table, Path(profile).stem, entries)
        compute(missing, opened, execution or Execution(), progress, "disabled", table.name, begin)
        if all(entry.node(opened).result is None for entry in entries):
            raise RuntimeError(f"{name}: no cell could be computed; see error.json in {opened.root / 'cell'}")
    return TableReport(assemble(table, profile, request.settings, entries, opened, flags=request.selection))


def load_report(
    name: str, *, profile: str = "quick", store: str | Path = DEFAULT_ROOT, records: str | Path | None = None
) -> TableReport:
    """Read the report of a table from the store or its record, whichever has more finished cells; compute nothing.

    Raises:
        ConfigError: if neither has a finished cell.
    """
    from lit_prune.config.profiles import RECORDS
    from lit_prune.registry import table_of
    from lit_prune.report.load import gather

    folder = RECORDS if records is None else Path(records)
    found = gather(Store(store), folder, profiles=[profile], tables=[table_of(name).name])
    report = next((answer.report for answer in found if answer.plain and answer.num_done), None)
    if report is None:
        raise ConfigError(f"{name}: no cell is done at profile {profile}, neither in {store} nor in {folder}")
    return TableReport(report)
