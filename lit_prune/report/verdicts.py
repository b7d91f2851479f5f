"""Decide the claims of a table: choose the test that fits the noise, the smallest effect, and families of tests.

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
"""Units over which a difference is tested."""
_FIELDS = ["difference", "low", "high", "p", "p_alike", "n", "over"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of a table."""

    metric: str
    values: pd.DataFrame
    """[seeds, rows], without references."""
    sequences: pd.DataFrame
    """Losses of rows that seeds do not change: columns row, sequence, loss (summed over tokens), tokens."""

    @classmethod
    def of(cls, tidy: pd.DataFrame, sequences: pd.DataFrame | None, metric: str) -> Measured:
        """Return a metric of cells, with its lines of `sequences`, the frame of `read_sequences`."""
        if sequences is None or sequences.empty:
            return cls(metric, by_seed(tidy, metric), pd.DataFrame(columns=["row", "sequence", "loss", "tokens"]))
        return cls(metric, by_seed(tidy, metric), sequences[sequences["metric"] == metric])

    def smallest_effect(self, row: str) -> float:
        """Return the smallest effect of interest for a difference to `row`."""
        if "loss" in self.metric:
            return SMALLEST_EFFECT
        return SMALLEST_EFFECT * abs(float(self.values[row].mean())) if row in self.values else np.nan

    def compare(self, row: str, other: str, bound: float = np.nan) -> Compared:
        """Return `row` minus `other` with a paired t-test over seeds.

        If seeds change nothing: a paired bootstrap over validation sequences, or a sign test for an order of rows.
        `bound` defaults to the smallest effect of interest.
        """
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
    """The comparison of two rows."""

    over: str
    """Unit that `pair.n` counts and the test resamples: seeds or validation sequences."""
    pair: Paired
    bound: float
    """Smallest difference of interest, or largest difference of rows that are alike."""

    @property
    def matters(self) -> bool:
        """Whether the difference is at least the bound."""
        return bool(abs(self.pair.difference) >= self.bound)

    def support(self, more: bool) -> tuple[int, float]:
        """Return a sort key: how far the comparison supports a difference below 0, or above if `more`.

        Ascending: not run, against it, too small to matter, for it.
        """
        p = 1.0 if np.isnan(self.pair.p) else self.pair.p
        if self.pair.n == 0 or not self.matters:
            return (1 if self.pair.n else -1), -p
        return (2, -p) if (self.pair.difference > 0) == more else (0, p)


def judge(
    table: Table, tidy: pd.DataFrame, sequences: pd.DataFrame | None = None, checks: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the verdict on each claim, a line per claim.

    Columns: claim, metric, source, verdict, difference (better - worse), low, high, p, p_alike, n, over.
    It holds if the difference is below 0, or above if more is better, and fails on the other side, with p < 0.05 after
    Holm's correction and a difference of at least `SMALLEST_EFFECT`. It is negligible if two one-sided tests show the
    difference to be smaller than that; identical if the two rows are equal in every seed; not run if no seed was
    measured for both rows; else undecided. A claim that two rows are alike, or that one is not worse, holds if tests
    show that the difference stays within the claim's own bound, and fails if a test shows that it exceeds it. A claim
    that the order of two rows flips holds if both halves do and fails if one does. Difference, interval and p are those
    of the deciding half, worse - better before retraining. Claims about the order of all rows need `checks`.

    The correction is within one `Claim.family`, separately for retrained and zero-shot claims and for both kinds of
    test: no difference can be both 0 and at least the bound. The interval is not corrected. `n` counts seeds or
    sequences, see `Measured.compare`.
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
    """Return the comparison with the p of the claim's hypothesis; of a flip, its deciding half."""
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
    """Return whether two rows that the claim calls alike, or one not worse, differ by more than its bound."""
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
    """Return the family of each claim: its place in the paper, and whether it is about models that are not retrained.

    A flip follows from two claims, so it adds no test.
    """
    return [
        (claim.family, metric.endswith("_before") or {claim.better, claim.worse} <= zero_shot, claim.before is not None)
        for claim, metric in zip(table.claims, metrics, strict=True)
    ]


def by_seed(tidy: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one metric, [seeds, rows], without references."""
    return tidy[~tidy["reference"]].pivot(index="seed", columns="row", values=metric)


def zero_shot_rows(tidy: pd.DataFrame) -> set[str]:
    """Return the rows that are not retrained."""
    if "tokens" not in tidy:
        return set()
    tokens = tidy.groupby("row", sort=False)["tokens"].max()
    return set(tokens.index[tokens == 0])


def holm_by_family(p: pd.Series, families: Sequence[Hashable]) -> pd.Series:
    """Return p-values corrected within each family; `families` has the family of each value."""
    corrected = p.copy()
    for family in set(families):
        chosen = [other == family for other in families]
        corrected[chosen] = holm(p[chosen])
    return corrected
