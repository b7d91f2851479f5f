"""A table of a paper as an experiment: rows, the paper's numbers and claims. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_prune.config import Cell, Profile
from lit_prune.config.overrides import override
from lit_prune.config.prune import DEFAULT_METHOD

Changes = dict[str, Any]
"""Dotted field -> value: what a row changes in the base cell."""

WHOLE: Changes = {
    "prune.method": DEFAULT_METHOD,
    "prune.num_hidden_layers": None, "prune.hidden_size": None, "prune.intermediate_size": None,
    "prune.num_attention_heads": None,
    "prune.num_key_value_heads": None, "prune.num_parameters": None, "prune.drop_layers": (), "prune.num_iterations": 1,
    "prune.width_allocation": "uniform", "prune.head_merging": "off", "prune.init": "teacher", "prune.plan_path": None,
    "prune.init_from": None,
}  # fmt: skip
"""Changes that keep the whole model, whatever a profile or --set prunes."""

UNPRUNED: Changes = {"parent": None, "distill.max_steps": 0, **WHOLE}
"""Changes that turn a reference row into the unpruned teacher."""


LEVEL = 0.05
"""Significance level of every test, after Holm's correction."""
SMALLEST_EFFECT = 0.01
"""Smallest difference of interest: nats per token of a loss, which is 1 % of perplexity; 1 % of any other metric."""
ORDER = "order_agreement"
"""Metric of claims about the order of all rows by LM loss: Kendall's tau with their order at the end of the retraining.
Such a claim names shares of the steps, such as "75 %", instead of two rows."""
ACCURACY = "accuracy"
"""Mean accuracy on the tasks of `evaluation.tasks`; the accuracy on one task is accuracy_TASK."""
BASIN = ("basin_log_volume", "basin_mean_log_radius")
"""Metrics of `evaluation.basin`."""
BIASED = (
    "The volume of a basin (arXiv 1906.03291) is an estimate that is biased low, the more so the more weights a model "
    "has: compare only rows with as many weights (basin num weights), and read the mean log radius beside it."
)
"""Caveat of those metrics."""
_PLACE = re.compile(r"(Table|Figure|section|appendix|practice)s? ([A-Z]?\.?\d+(?:\.\d+)*)|abstract")


def paper_named(source: str) -> str:
    """Return the short name of the paper with which a source begins, as "Wanda" in "Wanda, Table 3"; "" if none."""
    place = _PLACE.search(source)
    before = "" if place is None else source[: place.start()]
    return before.removesuffix(", ") if before.endswith(", ") else ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper: `better` has a better metric than `worse`, the two are alike, or their order flips."""

    better: str
    worse: str
    source: str
    metric: str | None = None
    """Metric that is compared; None is the first metric of the table."""
    tolerance: float | None = None
    """If set, the claim is that the two rows differ by less than this, in either direction."""
    or_better: bool = False
    """The claim is that `worse` is no improvement: `better` is better, or worse by less than `tolerance`."""
    before: str | None = None
    """The claim is that retraining flips the order: by this metric, measured before retraining, `worse` is better."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that the claim compares; none if it is about the order of all rows."""
        return () if self.metric == ORDER else (self.better, self.worse)

    @property
    def named_metrics(self) -> list[str]:
        """The columns that the claim names."""
        return [name for name in (self.metric, self.before) if name is not None and name != ORDER]

    @property
    def family(self) -> str:
        """The first table, figure, section, practice or abstract of a paper that the source names.

        Claims of one family share a Holm correction; retrained and zero-shot rows are corrected separately.
        """
        place, paper = _PLACE.search(self.source), paper_named(self.source)
        if place is None:
            return self.source
        where = place[0] if place[1] is None else f"{place[1]} {place[2]}"
        return where if paper in ("", "Minitron") else f"{paper}, {where}"

    @property
    def bound(self) -> float:
        """The tolerance; NaN for an ordering, whose bound is the smallest effect of interest."""
        return math.nan if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Table:
    """A table of a paper as an experiment. Rows and claims are compared by the first metric unless a claim names
    another. Lower is better unless `higher_is_better` names the metric."""

    name: str
    question: str
    source: str
    rows: Mapping[str, Changes]
    """Name of a row, as in the paper -> its changes of the base cell; empty if `build_for_profile` adds the rows."""
    baseline: str
    """The row against which all others are compared."""
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Row -> metric -> the paper's value."""
    claims: tuple[Claim, ...] = ()
    accuracy_claims: tuple[Claim, ...] = ()
    """Claims about the column accuracy, which exists only if cells measure it (`evaluation.tasks`)."""
    metrics: tuple[str, ...] = ("lm_loss", "perplexity")
    higher_is_better: tuple[str, ...] = ()
    """Metrics for which a higher value is better."""
    reference_rows: Mapping[str, Changes] = field(default_factory=lambda: {"teacher": UNPRUNED})
    """Rows that are measured once, outside the comparison. Their changes override those of the baseline."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Row -> heading under which it is printed; without headings the table has one section. Only rows of the baseline's
    section are compared with it."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before comparing the columns."""
    seed_fields: tuple[str, ...] = ("seed",)
    """Fields that are set to the seed. Without retraining, the only noise comes from "calibration.seed". If a row lacks
    the section of a field, such as that of "teacher.finetune.seed", the field is left out for this row."""
    base_overrides: Changes = field(default_factory=dict)
    """Changes of the cell at every profile; rows and --set override them."""
    build_for_profile: Callable[[Table, Profile, Path], Table] | None = None
    """(table, profile, store) -> the table at that profile, if its rows or base depend on the profile."""
    prepare: Callable[[Profile, Path], None] | None = None
    """(profile, store): make the measurements by which `build_for_profile` chooses rows; called only by a run."""
    pending: str = ""
    """One line about measurements of `prepare` that are missing and may change the rows."""
    profile_fields: tuple[str, ...] = ()
    """Swept fields whose values `build_for_profile` takes from the profile, so that --set may change them."""
    different_texts: tuple[tuple[str, str], ...] = ()
    """Pairs of corpora, such as ("corpus", "parent.corpus"), that must differ in the rows that have both."""

    def at(self, profile: Profile, store: Path, settings: Mapping[str, Any] | None = None) -> Table:
        """Return the table at a profile, whose `build_for_profile` sees the base cell of its rows.

        Args:
            store: folder of measurements that decide about rows.
            settings: fields set on the base cell, as in `entries`.

        Raises:
            ConfigError: if the profile lacks something the table needs.
        """
        if self.build_for_profile is None:
            return self
        return self.build_for_profile(self, self._profile(profile, settings), store)

    def measure(self, profile: Profile, store: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Measure what decides about the rows of the table at a profile, with arguments as in `at`."""
        if self.prepare is not None:
            self.prepare(self._profile(profile, settings), store)

    def _profile(self, profile: Profile, settings: Mapping[str, Any] | None) -> Profile:
        return replace(profile, cell=override(override(profile.cell, self.base_overrides), settings or {}))

    def measuring(self, cell: Cell) -> Table:
        """Return the table with the metrics that its cells measure in addition: speed, accuracy on tasks, basins."""
        metrics, higher, claims, caveats = self.metrics, self.higher_is_better, self.claims, self.caveats
        if cell.evaluation.throughput is not None and "speedup" not in metrics:
            metrics, higher = (*metrics, "speedup", "memory_share"), (*higher, "speedup")
        if cell.evaluation.tasks is not None and ACCURACY not in metrics:
            found = (ACCURACY, *(f"{ACCURACY}_{name}" for name in cell.evaluation.tasks.names))
            metrics, higher, claims = (*metrics, *found), (*higher, *found), (*claims, *self.accuracy_claims)
        if cell.evaluation.basin is not None:
            metrics = tuple(dict.fromkeys((*metrics, *BASIN, "basin_num_weights")))
            higher, caveats = tuple(dict.fromkeys((*higher, *BASIN))), tuple(dict.fromkeys((*caveats, BIASED)))
        if metrics == self.metrics:
            return self
        return replace(self, metrics=metrics, higher_is_better=higher, claims=claims, caveats=caveats)

    def __post_init__(self) -> None:
        if self.build_for_profile is not None and not self.rows:
            return
        claimed = (row for claim in self.claims for row in claim.rows)
        if unknown := {self.baseline, *self.paper, *claimed} - set(self.rows):
            raise ValueError(f"{self.name}: baseline, paper and claims must name rows, got {sorted(unknown)}")
        if twice := set(self.rows) & set(self.reference_rows):
            raise ValueError(f"{self.name}: names of rows and reference rows must differ, got {sorted(twice)} twice")
        named_metrics = {*self.higher_is_better, *(name for claim in self.claims for name in claim.named_metrics)}
        if unmeasured := named_metrics - set(self.metrics):
            raise ValueError(f"{self.name}: metrics must have {sorted(unmeasured)}, which a claim or direction names")

    @property
    def swept(self) -> tuple[str, ...]:
        """The fields that rows change."""
        return tuple(dict.fromkeys(path for changes in self.rows.values() for path in changes))

    @property
    def named_rows(self) -> list[str]:
        """The rows of the table; where a profile decides about them, those that the paper's numbers and claims name."""
        rows = () if self.build_for_profile is not None else self.rows
        claimed = (row for claim in self.claims for row in claim.rows)
        return list(dict.fromkeys([*rows, *self.paper, *claimed]))

    def section_of(self, row: str) -> str:
        """Return the heading of a row; rows that `--add-row` adds are in the baseline's section."""
        return self.sections.get(row, self.sections.get(self.baseline, ""))

    def metric_of(self, claim: Claim) -> str:
        """Return the metric a claim is judged by."""
        return claim.metric or self.metrics[0]

    def prefers_more(self, metric: str) -> bool:
        """Return whether more of a metric is better."""
        return metric == ORDER or metric in self.higher_is_better

    def stated(self, claim: Claim) -> str:
        """Return a claim in words: its relation, and its metric where it names one."""
        return self.relation(claim) + (f" ({claim.metric})" if claim.metric else "")

    def relation(self, claim: Claim) -> str:
        """Return the two rows of a claim and what it says of their metric."""
        more = self.prefers_more(self.metric_of(claim))
        order = f"{claim.better} {'>' if more else '<'} {claim.worse}"
        if claim.or_better:
            return f"{order} {'-' if more else '+'} {claim.tolerance:g}"
        if claim.tolerance is not None:
            return f"{claim.better} = {claim.worse} within {claim.tolerance:g}"
        if claim.metric == ORDER:
            return f"{order} of the steps"
        return (
            order
            if claim.before is None
            else f"{order}, and {claim.better} {'<' if more else '>'} {claim.worse} before"
        )
