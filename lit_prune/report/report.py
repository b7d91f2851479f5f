"""Assemble the report of a table: rows with error bars, verdicts on claims, order of rows.

Reads results only; render/ shows a report. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lit_prune.config import Cell
from lit_prune.config.overrides import plain_of
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry, with_seed
from lit_prune.report.best_row import BestRow, best_row
from lit_prune.report.layer_scores import LayerScores, drops_layers, read_layer_scores
from lit_prune.report.results_frame import found_of, read_all, tidy, typed
from lit_prune.report.sequences import read_sequences
from lit_prune.report.statistics import Agreement, agree_over_seeds, spread
from lit_prune.report.trajectories import flips, ranks, read_checks
from lit_prune.report.verdicts import Measured, by_seed, holm_by_family, judge, zero_shot_rows
from lit_prune.store import Node, Store
from lit_prune.store.environment import machine
from lit_prune.store.store import commits_of


@dataclass(frozen=True, eq=False)
class ReportRequest:
    """The request of a table."""

    table: Table
    profile: str
    settings: Mapping[str, Any]
    """Dotted path -> value of the fields that differ from the profile."""
    flags: tuple[str, ...]
    """Other arguments of the command, such as ("--seeds", "5")."""
    cell: Cell
    """The baseline's cell at the first seed."""

    @property
    def corpus(self) -> str | None:
        """sha256 of the text, or revision on the hub; None while the corpus has not been read."""
        return self.cell.corpus.fingerprint

    @property
    def teacher(self) -> Mapping[str, Any]:
        """`model`, or `pretraining` if it is trained here, and `fingerprint`."""
        return plain_of(self.cell.teacher)


@dataclass(frozen=True, eq=False)
class Report(ReportRequest):
    """The results of a table at a profile, and their provenance."""

    tidy: pd.DataFrame
    summary: pd.DataFrame
    verdicts: pd.DataFrame
    best: BestRow | None
    """The best of the compared rows; None if none is measured."""
    agreement: Agreement
    histories: pd.DataFrame
    checks: pd.DataFrame
    """Validation losses during the retraining: row, seed, step, lm_loss, kd_loss; empty if none were requested."""
    sequences: pd.DataFrame
    """Losses by validation sequence of the rows that seeds do not change, from `read_sequences`."""
    ranks: pd.DataFrame
    """Agreement of the order of the rows at each validation with the final one."""
    flips: pd.DataFrame
    """Steps at which the two rows of a claim swap their order during retraining."""
    layer_scores: LayerScores | None
    """Calibration scores of the teacher's layers; None unless the table drops layers."""
    commits: frozenset[str]
    """Commits at which the finished cells were computed; "+" marks uncommitted changes."""
    versions: Mapping[str, str]
    """Package -> version; several, comma separated, if cells differ."""
    hardware: tuple[str, ...]
    """Machines on which the finished cells were computed."""

    @property
    def request(self) -> ReportRequest:
        """The request without results."""
        return ReportRequest(*(getattr(self, field.name) for field in fields(ReportRequest)))

    @property
    def num_seeds(self) -> int:
        """Requested seeds."""
        return int(self.tidy.loc[~self.tidy["reference"], "seed"].nunique())

    @property
    def ranked(self) -> pd.DataFrame:
        """The summary in the order of a printed table: compared rows, other rows, references, each by result.

        The sections of the other rows follow each other as in the table.
        """
        ascending = self.table.metrics[0] not in self.table.higher_is_better
        sections = list(dict.fromkeys(map(self.table.section_of, self.table.sections)))
        places = [sections.index(self.table.section_of(row)) if sections else 0 for row in self.summary.index]
        by_result = self.summary.assign(place=places).sort_values("mean", ascending=ascending, kind="stable")
        keys = by_result.sort_values(["reference", "compared", "place"], ascending=[True, False, True], kind="stable")
        return keys.drop(columns="place")

    @property
    def failures(self) -> list[tuple[str, int, str]]:
        """Row, seed and error of each failed cell."""
        failed = self.tidy[self.tidy["state"] == "failed"]
        return list(failed[["row", "seed", "error"]].itertuples(index=False, name=None))

    @property
    def mixed(self) -> bool:
        """Whether the cells come from more than one version of the code."""
        return len(self.commits) > 1


def assemble(
    table: Table, profile_name: str, settings: Mapping[str, Any], entries: list[Entry], store: Store,
    *, flags: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Return the report of a table, from entries with the fingerprints of corpus and teacher.

    Raises:
        ConfigError: if two cells share a row and a seed.
    """
    # If --filter removes the baseline, the first row replaces it.
    cell = next((e.cell for e in entries if e.row == table.baseline), entries[0].cell)
    table = table.measuring(cell)
    return complete(
        ReportRequest(table, profile_name, dict(settings), tuple(flags), cell), tidy(table, entries, store), store
    )


def reread(report: Report, store: Store) -> Report:
    """Return the report of the same request from the current cells of the store."""
    metrics = [name for name in report.table.metrics if name in report.tidy]
    found = [found_of(metrics, _node(store, address)) for address in report.tidy["key"]]
    cells = typed(report.table, report.tidy.astype(object).assign(**pd.DataFrame(found, dtype=object)))
    return complete(report.request, cells, store)


def complete(request: ReportRequest, cells: pd.DataFrame, store: Store) -> Report:
    """Return the report of a request from its tidy cells, with training curves and validations from the store."""
    trained = _trained(cells, store)
    scores = read_layer_scores(_baseline(request, cells), store) if drops_layers(request.cell, cells) else None
    done = [_node(store, address).env for address in cells.loc[cells["state"] == "done", "key"]]
    return with_statistics(
        request, cells, histories=histories(trained), checks=read_checks(trained), layer_scores=scores,
        sequences=read_sequences(request.table, cells, trained),
        commits=frozenset(commit or "unknown" for env in done for commit in commits_of(env)),
        versions=_versions(done), hardware=_hardware(done),
    )  # fmt: skip


def with_statistics(
    request: ReportRequest, tidy: pd.DataFrame, *, checks: pd.DataFrame, sequences: pd.DataFrame, **known: Any
) -> Report:
    """Return a report with all statistics, from its cells, validations and losses by sequence."""
    table, summary = request.table, summarise(request.table, tidy, sequences)
    return Report(
        **vars(request), tidy=tidy, checks=checks, sequences=sequences, summary=summary,
        verdicts=judge(table, tidy, sequences, checks),
        best=best_row(table, summary, Measured.of(tidy, sequences, table.metrics[0])),
        agreement=rank_agreement(table, tidy), ranks=ranks(checks), flips=flips(table, checks), **known,
    )  # fmt: skip


def _baseline(request: ReportRequest, cells: pd.DataFrame) -> list[Cell]:
    """Return the cells of the baseline, or of the row that replaces it, one per seed."""
    rows = cells.loc[~cells["reference"]]
    row = request.table.baseline if request.table.baseline in set(rows["row"]) else rows["row"].iloc[0]
    seeds = rows.loc[rows["row"] == row, "seed"]
    return [with_seed(request.cell, request.table.seed_fields, int(seed)) for seed in seeds]


def summarise(table: Table, tidy: pd.DataFrame, sequences: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return a line per row, in the order of the table with references last, indexed by row.

    Columns: reference; compared (no reference, of the baseline's section, and retrained if it is); of the first metric
    mean, sd, n,
    interval (half width of the 95 % t interval), delta (to the baseline, over shared seeds) and p (paired test of
    `Measured.compare`, Holm over the retrained rows and over the others); of every other metric the mean, under its
    name, and "sd METRIC"; the paper's values as "paper METRIC". NaN if there are too few seeds; the baseline,
    references and rows of other sections have no delta and no p.
    """
    first, *others = table.metrics
    rows = tidy.groupby("row", sort=False)
    summary = rows["reference"].first().to_frame()
    zero_shot = pd.Series(summary.index.isin(list(zero_shot_rows(tidy))), summary.index)
    # If --filter removes the baseline, the first row replaces it.
    standard = table.baseline if table.baseline in summary.index else summary.index[0]
    beside = np.array([table.section_of(row) == table.section_of(standard) for row in summary.index], bool)
    summary["compared"] = ~summary["reference"] & (zero_shot == zero_shot[standard]) & beside
    summary["mean"], summary["sd"], summary["n"] = rows[first].mean(), rows[first].agg(spread), rows[first].count()
    summary["interval"] = stats.t.ppf(0.975, summary["n"] - 1) * summary["sd"] / np.sqrt(summary["n"])
    measured = Measured.of(tidy, sequences, first)
    compared = ~summary["reference"] & (summary.index != table.baseline) & beside
    against = {row: measured.compare(row, table.baseline).pair for row in summary.index[compared]}
    summary["delta"] = pd.Series({row: pair.difference for row, pair in against.items()}, dtype=float)
    p = pd.Series({row: pair.p for row, pair in against.items()}, dtype=float)
    summary["p"] = holm_by_family(p, list(zero_shot[p.index]))
    for metric in others:
        summary[metric], summary[f"sd {metric}"] = rows[metric].mean(), rows[metric].agg(spread)
    for metric in table.metrics:
        summary[f"paper {metric}"] = [table.paper.get(row, {}).get(metric, np.nan) for row in summary.index]
    return summary


def rank_agreement(table: Table, tidy: pd.DataFrame) -> Agreement:
    """Return the agreement of the paper's order of rows by the first metric with ours; NaN with fewer than two rows."""
    first = table.metrics[0]
    paper = pd.Series({row: values[first] for row, values in table.paper.items() if first in values}, dtype=float)
    return agree_over_seeds(by_seed(tidy, first), paper)


def histories(done: Mapping[tuple[str, int], Node]) -> pd.DataFrame:
    """Return metrics.csv of the finished, retrained cells, by row and seed."""
    whole = read_all(done, "metrics.csv")
    return pd.DataFrame(columns=["row", "seed", "step"]) if whole is None else whole


def _trained(tidy: pd.DataFrame, store: Store) -> dict[tuple[str, int], Node]:
    """Return row and seed -> node of the finished cells, without references."""
    done = tidy[(tidy["state"] == "done") & ~tidy["reference"]]
    return {(cell.row, cell.seed): _node(store, cell.key) for cell in done.itertuples()}


def _node(store: Store, address: str) -> Node:
    return store.at("cell", address)


def _versions(envs: list[dict[str, Any]]) -> dict[str, str]:
    found = [{"python": env.get("python"), **env.get("versions", {})} for env in envs]
    names = dict.fromkeys(name for versions in found for name in versions)
    several = {name: sorted({v[name] for v in found if v.get(name)}) for name in names}
    return {name: ", ".join(versions) for name, versions in several.items() if versions}


def _hardware(envs: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({machine(env) for env in envs if "processor" in env}))
