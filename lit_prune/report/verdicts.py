"""Verdicts on the claims of a table: which test fits the noise, how large a difference matters, families of tests.

No torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lit_prune.config.table import LEVEL, ORDER, SMALLEST_EFFECT, Claim, Table
from lit_prune.report.statistics import Paired, compare, holm, paired_bootstrap, per_token, sign_test
from lit_prune.report.trajectories import order_by_seed

VERDICTS = ("holds", "fails", "negligible", "identical", "undecided", "not run")
SEEDS, SEQUENCES = "seeds", "sequences"
"""What the noise of a difference was taken from."""
_FIELDS = ["difference", "low", "high", "p", "p_alike", "n", "over"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of a table."""

    metric: str
    values: pd.DataFrame
    """[seeds, rows], references left out."""
    sequences: pd.DataFrame
    """Losses of rows that seeds do not change: columns row, sequence, loss (summed over tokens), tokens."""

    @classmethod
    def of(cls, tidy: pd.DataFrame, sequences: pd.DataFrame | None, metric: str) -> Measured:
        """Return a metric of cells, with the lines of `sequences`, as of `read_sequences`, that are about it."""
        if sequences is None or sequences.empty:
            return cls(metric, by_seed(tidy, metric), pd.DataFrame(columns=["row", "sequence", "loss", "tokens"]))
        return cls(metric, by_seed(tidy, metric), sequences[sequences["metric"] == metric])

    def smallest_effect(self, row: str) -> float:
        """Return the smallest difference to `row` that is of interest."""
        if "loss" in self.metric:
            return SMALLEST_EFFECT
        return SMALLEST_EFFECT * abs(float(self.values[row].mean())) if row in self.values else np.nan

    def compare(self, row: str, other: str, bound: float = np.nan) -> Compared:
        """`row` minus `other`: a paired t-test over seeds, and where seeds change nothing a paired bootstrap over
        validation sequences, or of an order of rows a sign test. `bound` is by default the smallest difference of
        interest."""
        bound = self.smallest_effect(other) if np.isnan(bound) else bound
        found = compare(self.values, row, other, bound)
        if self.metric == ORDER and found.constant:
            return Compared(SEEDS, sign_test(found, bound), bound)
        if found.identical or not found.constant:
            return Compared(SEEDS, found, bound)
        columns = [self.sequences[self.sequences["row"] == name].set_index("sequence") for name in (row, other)]
        pair = [frame[["loss", "tokens"]].astype(float) for frame in columns]
        if any(map(len, pair)) and pair[0].index.equals(pair[1].index):
            return Compared(SEQUENCES, paired_bootstrap(*pair, statistic=per_token, bound=bound), bound)
        return Compared(SEEDS, found, bound)


@dataclass(frozen=True)
class Compared:
    """Two rows compared."""

    over: str
    """What `pair.n` counts, and whose noise the test is against: seeds, or validation sequences."""
    pair: Paired
    bound: float
    """The difference from which it is of interest, or that two rows which are alike do not reach."""

    @property
    def matters(self) -> bool:
        """Whether the difference is as large as the bound."""
        return bool(abs(self.pair.difference) >= self.bound)

    def support(self, more: bool) -> tuple[int, float]:
        """A key that sorts comparisons by how far they support that the difference is below 0, or above if `more`:
        not run, against it, no matter, for it."""
        p = 1.0 if np.isnan(self.pair.p) else self.pair.p
        if self.pair.n == 0 or not self.matters:
            return (1 if self.pair.n else -1), -p
        return (2, -p) if (self.pair.difference > 0) == more else (0, p)


def judge(
    table: Table, tidy: pd.DataFrame, sequences: pd.DataFrame | None = None, checks: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One line a claim: claim, metric, source, verdict, difference (better - worse), low, high, p, p_alike, n, over.

    It holds if the difference is below 0, or above if more is better, and fails on the other side, with p < 0.05 after
    Holm's correction and a difference of at least `SMALLEST_EFFECT`. It is negligible if two one-sided tests show the
    difference to be smaller than that; identical if the two rows give the same in every seed; not run if no seed was
    measured for both rows; else undecided. A claim that two rows are alike, or that one is not worse, holds if they
    show its own bounds to be kept, and fails if a test shows them to be exceeded. A claim that the order of two rows
    flips is two: it holds if both do and fails if one does, and difference, interval and p are those of the one that
    decides, which before retraining are worse - better. A claim about the order of all rows needs `checks`.

    The correction is over the claims of one `Claim.family`, retrained and zero-shot ones apart, and over both kinds of
    test separately: no difference can be both nothing and at least the bound. The interval is not corrected. `n` counts
    what the test is over, seeds or sequences, see `Measured.compare`.
    """
    metrics = [table.metric_of(claim) for claim in table.claims]
    names = {*metrics, *(claim.before for claim in table.claims if claim.before)} - {ORDER}
    measured = {name: Measured.of(tidy, sequences, name) for name in names}
    if ORDER in metrics and checks is not None:
        shares = dict.fromkeys(share for c in table.claims if c.metric == ORDER for share in (c.better, c.worse))
        measured[ORDER] = Measured(ORDER, order_by_seed(checks, shares), pd.DataFrame(columns=["row"]))
    found = [_tested(table, claim, measured) for claim in table.claims]
    verdicts = pd.DataFrame([{**vars(one.pair), "over": one.over} for one in found], columns=_FIELDS)
    verdicts.insert(0, "claim", [table.stated(claim) for claim in table.claims])
    verdicts.insert(1, "metric", metrics)
    verdicts.insert(2, "source", [claim.source for claim in table.claims])
    families = _families(table, metrics, zero_shot_rows(tidy))
    for name in ("p", "p_alike"):
        verdicts[name] = holm_by_family(verdicts[name].astype(float), families)
    tests = zip(table.claims, metrics, found, verdicts["p"], verdicts["p_alike"], strict=True)
    verdicts.insert(3, "verdict", [_verdict(table, *test) for test in tests])
    return verdicts


def _tested(table: Table, claim: Claim, measured: Mapping[str, Measured]) -> Compared:
    """Return the comparison with the p of the hypothesis that the claim is about; of a flip, the half that decides
    it."""
    metric = table.metric_of(claim)
    more = table.prefers_more(metric)
    if metric not in measured:
        return Compared(SEEDS, Paired(np.nan, np.nan, np.nan, np.nan, 0), claim.bound)
    found = measured[metric].compare(claim.better, claim.worse, claim.bound)
    if claim.before is not None:
        start = measured[claim.before].compare(claim.worse, claim.better)
        return min(found, start, key=lambda half: half.support(more))
    if claim.tolerance is None:
        return found
    p = found.pair.p_beyond if _exceeds(claim, found, more) else found.pair.p_alike
    if claim.or_better and not _exceeds(claim, found, more):
        p = found.pair.p_above if more else found.pair.p_below
    return replace(found, pair=replace(found.pair, p=p, p_alike=np.nan))


def _exceeds(claim: Claim, found: Compared, more: bool) -> bool:
    """Return whether two rows that are alike, or of which one is not worse, are further apart than the claim says."""
    return found.matters and not (claim.or_better and (found.pair.difference > 0) == more)


def _verdict(table: Table, claim: Claim, metric: str, found: Compared, p: float, p_alike: float) -> str:
    if found.pair.n == 0:
        return "not run"
    if found.pair.identical:
        return "identical"
    more = table.prefers_more(metric)
    if claim.tolerance is not None:
        true = not _exceeds(claim, found, more)
    elif found.matters:
        true = (found.pair.difference > 0) == more
    else:
        return "negligible" if p_alike < LEVEL else "undecided"
    return ("holds" if true else "fails") if p < LEVEL else "undecided"


def _families(table: Table, metrics: Sequence[str], zero_shot: set[str]) -> list[tuple[str, bool, bool]]:
    """The family of each claim: where the paper states it, and whether it is about models that are not retrained.

    A flip follows from two claims, so it makes no further test beside these.
    """
    return [
        (claim.family, metric.endswith("_before") or {claim.better, claim.worse} <= zero_shot, claim.before is not None)
        for claim, metric in zip(table.claims, metrics, strict=True)
    ]


def by_seed(tidy: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one metric, [seeds, rows], references left out."""
    return tidy[~tidy["reference"]].pivot(index="seed", columns="row", values=metric)


def zero_shot_rows(tidy: pd.DataFrame) -> set[str]:
    """Return the rows that are not retrained."""
    if "tokens" not in tidy:
        return set()
    tokens = tidy.groupby("row", sort=False)["tokens"].max()
    return set(tokens.index[tokens == 0])


def holm_by_family(p: pd.Series, families: Sequence[Hashable]) -> pd.Series:
    """p-values corrected within each family; `families` has that of each value."""
    corrected = p.copy()
    for family in set(families):
        chosen = [other == family for other in families]
        corrected[chosen] = holm(p[chosen])
    return corrected
